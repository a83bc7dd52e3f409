"""The loaders that Lightning asks for, over a data source that is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xftrain.interfaces import Batch, DataSource

# Lightning fetches one batch ahead of a loader without a length, and a run that continues would
# then skip it; no run reaches this many.
_ENDLESS = 2**62


class TrainStream:
    """Training batches without end, from any step on."""

    def __init__(self, data: DataSource, rank: int) -> None:
        self.data, self.rank = data, rank
        self.next_step = 0

    def __len__(self) -> int:
        return _ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        while True:
            step, self.next_step = self.next_step, self.next_step + 1
            yield self.data.batch("train", step, self.rank)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; Lightning saves it."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        self.next_step = int(state["next_step"])


class ValBatches:
    """The validation batches, each rank its own share; all ranks together, each batch once."""

    def __init__(self, data: DataSource, rank: int, world_size: int) -> None:
        self.data = data
        self.steps = range(rank, data.num_val_batches, world_size)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        for step in self.steps:
            yield self.data.batch("val", step)

"""The loaders that Lightning asks for, over a data source that is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xftrain.interfaces import Batch, DataSource, Split

# Lightning fetches one batch ahead of a loader without a length, and a run that continues would
# then skip it; no run reaches this many.
_ENDLESS = 2**62


class TrainStream:
    """Training batches without end, from any step on.

    Args:
        data: where they come from.
        rank: whose.
        overfit_batches: the first so many come again and again; 0 is no such limit.
    """

    def __init__(self, data: DataSource, rank: int, overfit_batches: int = 0) -> None:
        self.data, self.rank, self.overfit_batches = data, rank, overfit_batches
        self.next_step = 0
        self.is_waiting = False  # for a batch, whose data may be slow to come

    def __len__(self) -> int:
        return _ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.is_waiting = True
            try:
                batch = self.batch(self.next_step)
            finally:
                self.is_waiting = False
            self.next_step += 1  # a run that is stopped while it waits has not had this batch
            yield batch

    def batch(self, step: int) -> Batch:
        """The batch of one micro-step."""
        index = step % self.overfit_batches if self.overfit_batches else step
        return self.data.batch("train", index, self.rank)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; Lightning saves it."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        self.next_step = int(state["next_step"])


class ValBatches:
    """The validation batches, each rank its own share; all ranks together, each batch once.

    Args:
        data: where they come from.
        rank: whose share.
        world_size: number of ranks.
        overfit_batches: so many training batches in their place, those of `TrainStream`.
    """

    def __init__(
        self, data: DataSource, rank: int, world_size: int, overfit_batches: int = 0
    ) -> None:
        self.data = data
        self.chosen: list[tuple[Split, int, int]] = [
            ("val", step, 0) for step in range(rank, data.num_val_batches, world_size)
        ]
        if overfit_batches:
            self.chosen = [("train", step, rank) for step in range(overfit_batches)]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Batch]:
        for split, step, rank in self.chosen:
            yield self.data.batch(split, step, rank)

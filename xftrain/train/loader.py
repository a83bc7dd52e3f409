"""The loaders that Lightning asks for, over a data source that is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from xftrain.interfaces import IGNORED_LABEL, Batch, DataSource, Split, load_batch

# Lightning prefetches a batch from a loader without a length, which a resumed run would skip. So
# the loader has a length, larger than any run.
_ENDLESS = 2**62


class TrainStream:
    """An infinite stream of training batches, which can start at any micro-step.

    Args:
        data: the source of batches.
        rank: the rank that trains on them.
        overfit_batches: number of first batches, which repeat; 0 repeats none.
    """

    def __init__(self, data: DataSource, rank: int, overfit_batches: int = 0) -> None:
        self.data, self.rank, self.overfit_batches = data, rank, overfit_batches
        self.next_step = 0
        self.is_waiting = False  # whether the data source, which may be slow, is building a batch

    def __len__(self) -> int:
        return _ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.is_waiting = True
            try:
                batch = self.batch(self.next_step)
            finally:
                self.is_waiting = False
            self.next_step += 1  # only now: a run stopped during the wait has not used this batch
            yield batch

    def batch(self, step: int) -> Batch:
        """The batch of one micro-step."""
        index = step % self.overfit_batches if self.overfit_batches else step
        return load_batch(self.data, "train", index, self.rank)

    def state_dict(self) -> dict[str, Any]:
        """The next step, which Lightning saves."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved step."""
        self.next_step = int(state["next_step"])


class ValBatches:
    """The validation batches of a rank; each batch belongs to exactly one rank.

    Args:
        data: the source of batches.
        rank: the rank.
        world_size: number of ranks.
        overfit_batches: number of each rank's first training batches, which are used instead; 0
            uses validation batches.
        limit: maximum number of validation batches of all ranks together, or of training batches
            per rank; None is no limit.
    """

    def __init__(
        self,
        data: DataSource,
        rank: int,
        world_size: int,
        overfit_batches: int = 0,
        limit: int | None = None,
    ) -> None:
        self.data = data
        steps = range(overfit_batches or data.num_val_batches)[:limit]
        self._batch_ids: list[tuple[Split, int, int]] = [
            ("val", step, 0) for step in steps[rank::world_size]
        ]
        if overfit_batches:
            self._batch_ids = [("train", step, rank) for step in steps]
        # a limit below the number of ranks: every rank must take part, as their sums are added
        self.is_filler = bool(steps) and not self._batch_ids

    def __len__(self) -> int:
        return len(self._batch_ids) or int(self.is_filler)

    def __iter__(self) -> Iterator[Batch]:
        if self.is_filler:
            batch = load_batch(self.data, "val", 0, 0, is_first=True)
            labels = torch.full_like(batch.labels_BM, IGNORED_LABEL)  # so that no label counts
            yield replace(batch, labels_BM=labels)
        sources: Sequence[str] = getattr(self.data, "val_sources", ())
        for index, (split, step, rank) in enumerate(self._batch_ids):
            batch = load_batch(self.data, split, step, rank, is_first=index == 0)
            has_source = sources and split == "val"
            yield replace(batch, source=sources[step]) if has_source else batch

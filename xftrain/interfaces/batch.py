"""The batch of tokens and labels that a step trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xftrain.interfaces.batch_checks import check_batch

IGNORED_LABEL = -100


@dataclass(eq=False)  # not frozen: Lightning's bf16-true copies a batch field by field
class Batch:
    """The tokens and labels of one micro-batch.

    Attributes:
        tokens_BM: int64 token ids.
        labels_BM: int64 next tokens; `IGNORED_LABEL` if there is none. In a packed row they never
            cross a document boundary.
        positions_1M: int64 positions, the same for every row; they restart at 0 in every packed
            document.
        seqlens: lengths of the documents packed into the one row (they sum to M), as host
            integers so that reading them never waits for the device; None where rows are not
            packed. Packed implies B = 1.
        num_padding: number of tokens without a label that only fill rows; speed does not count
            them.
        source: the source of a validation batch, by whose name its loss is recorded too; None if
            the data has only one.
    """

    tokens_BM: Tensor
    labels_BM: Tensor
    positions_1M: Tensor
    seqlens: tuple[int, ...] | None = None
    num_padding: int = 0
    source: str | None = None

    def __post_init__(self) -> None:
        check_batch(self.tokens_BM, self.labels_BM, self.positions_1M, self.seqlens)

    @property
    def shape_BM(self) -> tuple[int, int]:
        """The number of rows and of positions."""
        return self.tokens_BM.shape[0], self.tokens_BM.shape[1]

    @property
    def num_tokens(self) -> int:
        """The number of tokens, B x M."""
        return self.tokens_BM.numel()

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The same batch on another device; Lightning calls this."""
        return replace(
            self,
            tokens_BM=self.tokens_BM.to(*args, **kwargs),
            labels_BM=self.labels_BM.to(*args, **kwargs),
            positions_1M=self.positions_1M.to(*args, **kwargs),
        )

    def copy_(self, other: Batch) -> None:
        """Copies another batch of the same shape into this one, without waiting for the device."""
        self.tokens_BM.copy_(other.tokens_BM, non_blocking=True)
        self.labels_BM.copy_(other.labels_BM, non_blocking=True)
        self.positions_1M.copy_(other.positions_1M, non_blocking=True)

    def pinned(self) -> Batch:
        """The same batch in pinned memory; copies to a GPU from other memory block the host."""
        if self.tokens_BM.device.type != "cpu":
            return self
        return replace(
            self,
            tokens_BM=self.tokens_BM.pin_memory(),
            labels_BM=self.labels_BM.pin_memory(),
            positions_1M=self.positions_1M.pin_memory(),
        )


def positions_of(num_positions: int, seqlens: tuple[int, ...] | None) -> Tensor:
    """int64 positions [1, M] that restart at 0 in every packed document."""
    lengths = (num_positions,) if seqlens is None else seqlens
    return torch.cat([torch.arange(n) for n in lengths])[None]

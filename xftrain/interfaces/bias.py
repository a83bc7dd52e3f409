"""The attention bias and the attention call, as plain data that every backend understands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.interfaces.batch_checks import bias_misfits, check_bias, check_scores, document_reasons
from xftrain.utils.transfer import on_device


@dataclass(frozen=True)
class AttnShape:
    """The sizes of one attention call; see the legend."""

    B: int
    M: int
    H: int
    G: int
    K: int

    @property
    def scale(self) -> float:
        """The default scale of scores, which the bias may replace, see `AttnCall.scale`."""
        return self.K**-0.5


@dataclass(frozen=True, eq=False)
class AttnBias:
    """Which keys a query sees, and how its scores are computed, as plain data.

    Scores are q k^T, multiplied by the scale, then capped; then the additive terms are added.

    Attributes:
        causal: whether later keys are hidden from a query.
        window: number of keys a query sees, itself included (causal only); None is unlimited.
        seqlens: document lengths of a packed row; a query sees its own document only.
        slopes: ALiBi slopes, one per query head: `slope * (j - i)` is added (causal only).
        dense: whether to pass the bias to the kernel as one tensor instead of in implicit form.
        additive_HMM: any further additive term, [H or 1, M, M]; -inf hides a key.
        scale: factor of q k^T; None is K**-0.5.
        softcap: scores become `softcap * tanh(score / softcap)` before anything is added to them
            (Gemma 2, arXiv:2408.00118); None applies no cap.
    """

    causal: bool = True
    window: int | None = None
    seqlens: tuple[int, ...] | None = None
    slopes: tuple[float, ...] | None = None
    dense: bool = False
    additive_HMM: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        check_bias(self.causal, self.window, self.slopes, self.additive_HMM)
        check_scores(self.scale, self.softcap)

    def misfits(self, shape: AttnShape) -> list[str]:
        """Reasons why this bias does not fit a batch of this shape; empty if it fits."""
        return [
            *document_reasons(self.seqlens, shape.B, shape.M),
            *bias_misfits(self.slopes, self.additive_HMM, shape.H, shape.M),
        ]

    def check_fits(self, shape: AttnShape) -> None:
        """Raises an error if this bias does not fit a batch of this shape.

        Raises:
            ConfigError: the reasons of `misfits`.
        """
        if reasons := self.misfits(shape):
            raise ConfigError(f"model.bias does not fit the batch: {'; '.join(reasons)}.")

    @property
    def key(self) -> tuple[Any, ...] | None:
        """A key that is equal for equal biases, to reuse handles; None if they cannot be reused."""
        if self.additive_HMM is not None:
            return None
        mask = (self.causal, self.window, self.seqlens)
        return (*mask, self.slopes, self.dense, self.scale, self.softcap)

    def segments(self, num_positions: int) -> list[tuple[int, int]]:
        """The half-open ranges of the documents in a row."""
        ends = list(accumulate(self.seqlens or (num_positions,)))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def documents(self, num_positions: int) -> Iterator[tuple[int, AttnBias]]:
        """The length and the bias of each packed document, or of the row if it is not packed.

        Slopes and window stay the same, as they act on differences of positions; the additive
        tensor is cut to the document.
        """
        additive_HMM = self.additive_HMM
        for start, end in self.segments(num_positions):
            own = None if additive_HMM is None else additive_HMM[:, start:end, start:end]
            yield end - start, replace(self, seqlens=None, additive_HMM=own)

    def documents_M(self, num_positions: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """The first and the last position of each position's document, int64 [M] each."""
        lengths = on_device(self.seqlens or (num_positions,), device)
        ends = lengths.cumsum(0)
        first_M, last_M = (
            torch.repeat_interleave(bound, lengths, output_size=num_positions)
            for bound in (ends - lengths, ends - 1)
        )
        return first_M, last_M

    def simplified(self, num_positions: int) -> AttnBias:
        """An equivalent bias at this length, without a window that hides nothing."""
        longest = max(self.seqlens or (num_positions,))
        if self.window is not None and self.window >= longest:
            return replace(self, window=None)
        return self

    def visible_MM(
        self, num_positions: int, device: torch.device | str = "cpu", first_query: int = 0
    ) -> Tensor:
        """Returns a bool mask [M, M], true if query i (row) sees key j (column).

        With `first_query` n, only the rows of queries n, n+1, ... are returned.
        """
        j = torch.arange(num_positions, device=device)
        ahead = j[first_query:, None] - j[None, :]
        visible = ahead >= 0 if self.causal else torch.ones_like(ahead, dtype=torch.bool)
        if self.window is not None:
            visible &= ahead < self.window
        if self.seqlens is not None:
            lengths = on_device(self.seqlens, device)
            ids = torch.arange(len(self.seqlens), device=device)
            document = torch.repeat_interleave(ids, lengths, output_size=num_positions)
            visible &= document[first_query:, None] == document[None, :]
        return visible

    def scores(self, qk: Tensor, head_dim: int) -> Tensor:
        """The scores before additive terms: q k^T, scaled, then capped.

        Args:
            qk: q k^T, of any shape.
            head_dim: K.
        """
        scores = qk * (head_dim**-0.5 if self.scale is None else self.scale)
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()

    def materialize(
        self,
        num_positions: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        first_query: int = 0,
    ) -> Tensor:
        """Returns the term added to the scores, [H or 1, M, M], -inf where hidden.

        It is slow and needs much memory. It is the specification against which every backend is
        tested: `softmax(scores(q k^T) + materialize()) v`, where a query that sees nothing gets 0.
        With `first_query` n, only the rows of queries n, n+1, ... are returned.
        """
        visible_MM = self.visible_MM(num_positions, device, first_query)
        bias = torch.zeros(1, *visible_MM.shape, dtype=dtype, device=device)
        if self.slopes is not None:
            j = torch.arange(num_positions, device=device, dtype=dtype)
            slopes_H = on_device(self.slopes, device, dtype)
            bias = slopes_H[:, None, None] * (j[None, :] - j[first_query:, None])
        if self.additive_HMM is not None:
            bias = bias + self.additive_HMM[:, first_query:].to(device=device, dtype=dtype)
        return bias.masked_fill(~visible_MM, float("-inf"))


class AttnCall(NamedTuple):
    """One attention call: its bias, sizes, dtype and device.

    Attributes:
        bias: the attention bias.
        shape: the sizes.
        dtype: dtype of q, k and v.
        device: device of q, k and v.
    """

    bias: AttnBias
    shape: AttnShape
    dtype: torch.dtype
    device: torch.device

    @property
    def scale(self) -> float:
        """The factor of q k^T."""
        return self.shape.scale if self.bias.scale is None else self.bias.scale


class AttnCase(NamedTuple):
    """An attention call that some layers of a model share for a batch.

    Attributes:
        call: the attention call of each of these layers.
        layers: their indices, from 0.
    """

    call: AttnCall
    layers: tuple[int, ...]


def format_layers(layers: Sequence[int]) -> str:
    """Formats layer indices, from 0, as `layer 0` or `layers 0-4, 6`."""
    runs: list[list[int]] = []
    for index in layers:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    ranges = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(ranges)}"

"""The loss by the position of a token in its context, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from xftrain.evaluation.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = ("positions", "labels", "loss")


class Bucket(NamedTuple):
    """The mean loss of the labels whose context has `first + 1` to `last + 1` tokens.

    Attributes:
        first: the first position, from 0.
        last: the last position.
        num_labels: number of labels.
        loss: mean cross-entropy in nats.
    """

    first: int
    last: int
    num_labels: int
    loss: float


class LossByPosition:
    """Adds up the losses at each position."""

    def __init__(self) -> None:
        self._loss_M = torch.zeros(0, dtype=torch.float64)
        self._labels_M = torch.zeros(0, dtype=torch.int64)

    def add(self, scores: Scores) -> None:
        """Adds the labels of a batch."""
        if not len(scores.positions_N):
            return
        size = max(int(scores.positions_N.max()) + 1, len(self._loss_M))
        loss = torch.bincount(scores.positions_N, scores.loss_N, minlength=size)
        self._loss_M = loss + _padded(self._loss_M, size)
        counts = torch.bincount(scores.positions_N, minlength=size)
        self._labels_M = counts + _padded(self._labels_M, size)

    def positions(self) -> list[Bucket]:
        """The mean loss at each position that has a label."""
        return [self._bucket(at, at) for at in range(len(self._loss_M)) if self._labels_M[at]]

    def buckets(self) -> list[Bucket]:
        """The mean loss at positions 0, 1, 2-3, 4-7, 8-15, ..., as far as they have labels."""
        edges = [0, 1]
        while edges[-1] < len(self._loss_M):
            edges.append(2 * edges[-1])
        pairs = zip(edges, edges[1:], strict=False)
        found = [self._bucket(a, min(b, len(self._loss_M)) - 1) for a, b in pairs]
        return [bucket for bucket in found if bucket.num_labels]

    def _bucket(self, first: int, last: int) -> Bucket:
        part = slice(first, last + 1)
        num_labels = int(self._labels_M[part].sum())
        loss = float(self._loss_M[part].sum()) / num_labels if num_labels else 0.0
        return Bucket(first, last, num_labels, loss)


def _padded(values_M: Tensor, size: int) -> Tensor:
    return torch.cat([values_M, values_M.new_zeros(size - len(values_M))])


def rows_of(buckets: Sequence[Bucket]) -> list[list[str]]:
    """The rows of a table."""
    return [
        [str(b.first) if b.first == b.last else f"{b.first}-{b.last}", str(b.num_labels)]
        + [f"{b.loss:.4f}"]
        for b in buckets
    ]


def plot(buckets: Sequence[Bucket], title: str) -> Figure:
    """Draws the mean loss against the position, from 1, on a logarithmic axis."""
    from xftrain.utils.plot_style import COLORS, new_figure, style_axis, use_log_ticks

    figure = new_figure(7, 3.5)
    axis = figure.add_subplot()
    style_axis(axis, title)
    middles = [((b.first + 1) * (b.last + 1)) ** 0.5 for b in buckets]
    axis.plot(middles, [b.loss for b in buckets], "o-", color=COLORS[0], markersize=4)
    axis.set_xscale("log")
    use_log_ticks(axis.xaxis)
    axis.set_xlabel("tokens in the context", fontsize=9)
    axis.set_ylabel("loss in nats", fontsize=9)
    return figure

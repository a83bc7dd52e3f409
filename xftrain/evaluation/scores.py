"""Scores every label of a batch: its loss, its position, and its document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.interfaces import IGNORED_LABEL, Batch, LossSums, positions_of
from xftrain.model.gpt import GPT

_TOKENS_OF_LOGITS = 4096  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class Scores:
    """The labels of a batch, without the ignored ones, in the order of the batch.

    Attributes:
        loss_N: float64 cross-entropy in nats.
        is_correct_N: whether the label is the most likely token.
        positions_N: int64 position of the token that precedes the label, from 0.
        documents_N: int64 index of the row, or of the packed document, within the batch.
    """

    loss_N: Tensor
    is_correct_N: Tensor
    positions_N: Tensor
    documents_N: Tensor

    def sums(self) -> LossSums:
        """The sums of the losses, of the labels, and of the correct predictions."""
        return LossSums(
            self.loss_N.sum(), torch.tensor(self.loss_N.numel()), self.is_correct_N.sum()
        )


def document_lengths(batch: Batch) -> list[int]:
    """The lengths of the packed documents, or of the rows if they are not packed."""
    num_rows, num_positions = batch.shape_BM
    return [num_positions] * num_rows if batch.seqlens is None else list(batch.seqlens)


@torch.no_grad()
def score(model: GPT, batch: Batch) -> Scores:
    """Scores the labels of a batch, in the precision of the context, on the CPU.

    Args:
        model: the model, in evaluation mode.
        batch: a batch on the model's device.
    """
    handles = model.prepare(*batch.shape_BM, batch.seqlens)
    x_ND = model.hidden(batch.tokens_BM, batch.positions_1M, handles).flatten(0, 1)
    labels_N = batch.labels_BM.flatten()
    losses, hits = [], []
    for begin in range(0, len(labels_N), _TOKENS_OF_LOGITS):
        part = slice(begin, begin + _TOKENS_OF_LOGITS)
        logits_NV = model.logits(x_ND[part])
        losses.append(
            F.cross_entropy(
                logits_NV.float(), labels_N[part], ignore_index=IGNORED_LABEL, reduction="none"
            ).double()
        )
        hits.append(logits_NV.argmax(dim=-1) == labels_N[part])
    is_label_N = labels_N != IGNORED_LABEL
    num_rows = batch.shape_BM[0]
    lengths = document_lengths(batch)
    documents_N = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    positions_N = batch.positions_1M.expand(num_rows, -1).flatten()
    columns = (torch.cat(losses), torch.cat(hits), positions_N, documents_N.to(labels_N.device))
    return Scores(*(column[is_label_N].cpu() for column in columns))


def parts_of(batch: Batch, max_tokens: int) -> Iterator[Batch]:
    """Cuts a batch into batches of at most `max_tokens`, between rows or packed documents.

    A row or document that is longer is a batch of its own, so that its context stays whole.
    """
    num_rows, num_positions = batch.shape_BM
    if batch.seqlens is None:
        size = max(1, max_tokens // num_positions)
        for begin in range(0, num_rows, size):
            rows = slice(begin, begin + size)
            yield replace(batch, tokens_BM=batch.tokens_BM[rows], labels_BM=batch.labels_BM[rows])
        return
    group: list[int] = []
    ends = list(accumulate(batch.seqlens))
    for index, length in enumerate(batch.seqlens):
        if group and ends[index] - ends[group[0]] + batch.seqlens[group[0]] > max_tokens:
            yield _documents(batch, group, ends)
            group = []
        group.append(index)
        assert length > 0
    yield _documents(batch, group, ends)


def _documents(batch: Batch, indices: list[int], ends: list[int]) -> Batch:
    """Consecutive packed documents of a batch."""
    assert batch.seqlens is not None
    lengths = tuple(batch.seqlens[index] for index in indices)
    end = ends[indices[-1]]
    columns = slice(end - sum(lengths), end)
    return replace(
        batch,
        tokens_BM=batch.tokens_BM[:, columns],
        labels_BM=batch.labels_BM[:, columns],
        positions_1M=positions_of(sum(lengths), lengths).to(batch.positions_1M.device),
        seqlens=lengths,
        num_padding=0,
    )

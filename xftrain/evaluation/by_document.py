"""The loss of each document, and which documents the model predicts worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from xftrain.evaluation.scores import Scores, document_lengths
from xftrain.interfaces import Batch

_BEGINNING = 24  # tokens by which a document can be recognized


@dataclass(frozen=True)
class DocumentLoss:
    """The mean loss of a packed document, or of a row that is not packed.

    Attributes:
        batch: the validation batch.
        index: the index in the batch.
        num_labels: number of labels.
        loss: mean cross-entropy in nats.
        beginning: its first tokens.
    """

    batch: int
    index: int
    num_labels: int
    loss: float
    beginning: tuple[int, ...]


def document_losses(
    scores: Scores, batch: Batch, number: int, first_index: int
) -> list[DocumentLoss]:
    """The mean loss of each document with a label.

    Args:
        scores: the scores of the batch.
        batch: the batch.
        number: the number of the validation batch that it is a part of.
        first_index: the index of its first document in the validation batch.
    """
    num_documents = len(document_lengths(batch))
    labels = torch.bincount(scores.documents_N, minlength=num_documents).tolist()
    losses = torch.bincount(scores.documents_N, scores.loss_N, minlength=num_documents).tolist()
    if batch.seqlens is None:
        beginnings: Sequence[list[int]] = batch.tokens_BM[:, :_BEGINNING].tolist()
    else:
        parts = batch.tokens_BM[0].split(batch.seqlens)
        beginnings = [part[:_BEGINNING].tolist() for part in parts]
    return [
        DocumentLoss(number, first_index + n, labels[n], losses[n] / labels[n], tuple(beginning))
        for n, beginning in enumerate(beginnings)
        if labels[n]
    ]


def quantiles(documents: Sequence[DocumentLoss]) -> dict[str, float]:
    """The loss that 10 %, half and 90 % of the documents stay below."""
    losses = torch.tensor([one.loss for one in documents], dtype=torch.float64)
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = losses.quantile(shares).tolist()
    return dict(zip(("p10", "p50", "p90"), found, strict=True))

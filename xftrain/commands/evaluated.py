"""The steps of an evaluation: scores the validation batches, reports them, and scores tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from xftrain.commands.trained_model import TrainedModel
from xftrain.errors import ConfigError
from xftrain.evaluation.by_document import DocumentLoss, document_losses, quantiles
from xftrain.evaluation.by_position import TITLE, LossByPosition, plot, rows_of
from xftrain.evaluation.likelihood import likelihoods, split_tokens
from xftrain.evaluation.scores import document_lengths, parts_of, score
from xftrain.evaluation.tasks import Task, result_of
from xftrain.interfaces import DataSource, load_batch
from xftrain.model.gpt import GPT
from xftrain.train.val_sums import ValSums
from xftrain.utils.files import replace_text, replacing
from xftrain.utils.markdown import table
from xftrain.utils.printable import one_line, printable, shortened
from xftrain.utils.spreadsheet import csv_text

log = logging.getLogger(__name__)

POSITIONS, POSITIONS_PLOT, DOCUMENTS = (
    "loss_by_position.csv",
    "loss_by_position.png",
    "loss_by_document.csv",
)
_MAX_DOCUMENTS = 10_000  # documents with the largest losses that are listed
_TEXT_CHARACTERS = 80


class Evaluated(NamedTuple):
    """What an evaluation has found.

    Attributes:
        metrics: metrics, by the names that training has for them.
        by_position: the loss by position.
        documents: the loss of each document.
    """

    metrics: dict[str, float]
    by_position: LossByPosition
    documents: list[DocumentLoss]


def evaluated(model: GPT, data: DataSource, max_tokens: int) -> Evaluated:
    """Scores all validation batches.

    Args:
        model: the model, on its device and in evaluation mode.
        data: the data.
        max_tokens: maximum number of tokens that are computed at once.

    Raises:
        RunError: no validation batch has a label.
    """
    sums = ValSums(getattr(data, "val_sources", ()))
    by_position, documents = LossByPosition(), list[DocumentLoss]()
    device = model.head.weight.device
    for number in range(data.num_val_batches):
        batch = load_batch(data, "val", number)
        first_index = 0
        for part in parts_of(batch, max_tokens):
            scores = score(model, part.to(device))
            num_bytes = data.num_label_bytes(part.labels_BM)
            sums.add(scores.sums(), num_bytes, batch.source)
            by_position.add(scores)
            documents += document_losses(scores, part, number, first_index)
            first_index += len(document_lengths(part))
    metrics = sums.metrics(torch.device("cpu"))
    metrics |= {f"val/document_loss_{name}": x for name, x in quantiles(documents).items()}
    return Evaluated(metrics, by_position, documents)


def report(found: Evaluated, data: DataSource, trained: TrainedModel, run_dir: Path) -> None:
    """Logs the metrics and the loss by position, and writes the tables and the plot."""
    shown = [[name.removeprefix("val/"), f"{value:.6g}"] for name, value in found.metrics.items()]
    log.info(
        "step %d of %s, on %d documents:\n%s",
        *(trained.step, one_line(str(trained.path)), len(found.documents)),
        table(["metric", "value"], shown),
    )
    buckets = found.by_position.buckets()
    log.info("loss by position in the context:\n%s", table(TITLE, rows_of(buckets)))
    positions = [
        {"position": b.first, "labels": b.num_labels, "loss": b.loss}
        for b in found.by_position.positions()
    ]
    replace_text(run_dir / POSITIONS, csv_text(positions, ["position", "labels", "loss"]))
    replace_text(run_dir / DOCUMENTS, _document_table(found.documents, data))
    with replacing(run_dir / POSITIONS_PLOT) as partial:
        plot(buckets, "held-out loss by position in the context").savefig(partial, format="png")
    log.info("tables and plot: %s, %s, %s in %s", POSITIONS, POSITIONS_PLOT, DOCUMENTS, run_dir)


def _document_table(documents: Sequence[DocumentLoss], data: DataSource) -> str:
    """The documents with the largest losses, and their beginnings, as CSV."""
    worst = sorted(documents, key=lambda one: -one.loss)[:_MAX_DOCUMENTS]
    columns = ["batch", "document", "labels", "loss", "beginning"]
    values = [(d.batch, d.index, d.num_labels, d.loss, _text(data, d.beginning)) for d in worst]
    return csv_text([dict(zip(columns, row, strict=True)) for row in values], columns)


def _text(data: DataSource, tokens: Sequence[int]) -> str:
    return shortened(one_line(printable(data.decode(list(tokens)))), _TEXT_CHARACTERS)


def evaluate_tasks(
    trained: TrainedModel, tasks: Sequence[Task], max_tokens: int
) -> dict[str, float]:
    """Evaluates tasks, logs their accuracies, and returns them as metrics."""
    results = []
    for task in tasks:
        if task.malformed:
            log.warning("tasks: %s: %s", task.name, task.describe_malformed())
        pairs = [
            split_tokens(trained.vocabulary, question.context, continuation)
            for question in task.questions
            for continuation in question.continuations
        ]
        if not all(context and continuation for context, continuation in pairs):
            raise ConfigError(
                "tasks need a vocabulary that encodes a context and each choice as at least one "
                f"token, and that of ckpt does not for {task.name}."
            )
        found = likelihoods(trained.model, pairs, max_tokens, trained.trained_positions)
        if not all(math.isfinite(one.log_likelihood) for one in found):
            raise ConfigError(
                f"tasks: a log-likelihood of {task.name} is not finite, as the weights of ckpt are "
                "not, or are too large for this precision: give another checkpoint."
            )
        num_cut = sum(one.is_cut for one in found)
        results.append(result_of(task, [one.log_likelihood for one in found], num_cut))
        if num_cut:
            log.warning(
                "tasks: %s: %d contexts are cut on the left, as the model knows %d positions",
                *(task.name, num_cut, trained.trained_positions or 0),
            )
    if results:
        rows = [
            [one.name, str(one.num_questions), f"{one.accuracy:.4f} ± {one.standard_error:.4f}"]
            + [f"{one.accuracy_per_character:.4f}"]
            for one in results
        ]
        log.info("tasks:\n%s", table(["task", "questions", "acc", "acc_norm"], rows))
    return {name: value for one in results for name, value in one.metrics().items()}

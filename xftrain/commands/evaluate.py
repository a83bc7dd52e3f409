"""`--config-name evaluate`: the held-out loss of a checkpoint's model on any data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.saved_choices import SavedChoices, choose_kernel
from xftrain.commands.trained_model import TrainedModel, load_trained_model
from xftrain.config import registry
from xftrain.config.compose import validate_as
from xftrain.config.run_config import EvaluateConfig
from xftrain.errors import ConfigError
from xftrain.evaluation.by_document import DocumentLoss, document_losses, quantiles
from xftrain.evaluation.by_position import TITLE, LossByPosition, plot, rows_of
from xftrain.evaluation.scores import parts_of, score
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.interfaces import Batch, DataSource, load_batch
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.train.same_data import check_data
from xftrain.train.val_sums import ValSums
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory
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
# Keys of `data` that determine the vocabulary, and so must be those of the checkpoint's run.
_VOCABULARY_KEYS = ("name", "tokenizer", "vocab_size")


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


def evaluate(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: EvaluateConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Writes tables and a plot into the run folder; returns the content of `result.json`.

    Args:
        cfg: what `xftrain.compose(config_name="evaluate")` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Raises:
        ConfigError: the configuration, the checkpoint or the data is wrong.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, "an evaluation")
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        config = checked or validate_as(EvaluateConfig, cfg)
        registry.check_own_classes([config.data])
        device, precision = hardware.resolve(config.accelerator, config.precision)
        result["device"] = hardware.device_name(device)
        reset_peak_memory(device)
        trained = load_trained_model(cfg, config)
        data = _data(config, trained)
        found = _run(config, trained.model, data, (device, precision), folder, result)
        result["metrics"] = found.metrics
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        folder.start_new_run()
        _report(found, data, trained, run_dir)
    return result


def _run(
    config: EvaluateConfig,
    model: GPT,
    data: DataSource,
    target: tuple[torch.device, str],
    folder: RunFolder,
    result: dict[str, Any],
) -> Evaluated:
    """Chooses the attention kernel, and evaluates in this precision on this device."""
    device, precision = target
    dtype = hardware.compute_dtype(precision)
    is_mixed = hardware.is_mixed(precision, dtype)
    model = model.to(device, torch.float32 if is_mixed else dtype).eval()
    first = next(parts_of(load_batch(data, "val", 0), config.max_tokens))
    result["kernel"] = choose_kernel(model, first, device, dtype, SavedChoices(), folder)
    autocast = torch.autocast(device.type, dtype, enabled=is_mixed)
    return evaluated(model, data, config.max_tokens, autocast)


def _data(config: EvaluateConfig, trained: TrainedModel) -> DataSource:
    """The data, in rows as the checkpoint's run had them unless others are configured.

    Raises:
        ConfigError: its tokens are not those of the checkpoint.
    """
    saved = trained.saved["config"]
    seq = config.seq or _saved_size(saved, "seq")
    batch_tokens = config.batch_tokens or _saved_size(saved, "batch_tokens")
    batch_size = getattr(config.data, "batch_size", None) or max(1, batch_tokens // seq)
    data: DataSource = registry.build(config.data, seq, batch_size, config.seed, 1)
    check_data(data)
    vocabulary = getattr(data, "vocabulary", None)
    is_same = data.vocab_size <= trained.model.vocab_size and (
        vocabulary is None or vocabulary.digest() == trained.vocabulary.digest()
    )
    if not is_same:
        raise ConfigError(
            "data must have the vocabulary of ckpt, and has another one; its run had "
            f"{_described(saved.get('data'))}: set these keys of data alike, or data.tokenizer="
            f"{one_line(str(trained.path.parent / 'tokenizer.json'))} where there is this file."
        )
    return data


def _saved_size(saved: Mapping[str, Any], key: str) -> int:
    value = saved.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"ckpt does not say which {key} its run had: give {key}.")
    return value


def _described(saved: Any) -> str:
    """The keys of the checkpoint's data that determine the vocabulary, as overrides."""
    saved = saved if isinstance(saved, Mapping) else {}
    named = {key: saved[key] for key in _VOCABULARY_KEYS if saved.get(key) is not None}
    words = [
        f"data={value}" if key == "name" else f"data.{key}={value}" for key, value in named.items()
    ]
    return shortened(one_line(" ".join(words)), 200) or "data of a class of the user's"


def evaluated(
    model: GPT, data: DataSource, max_tokens: int, precision: AbstractContextManager[Any]
) -> Evaluated:
    """Scores all validation batches.

    Args:
        model: the model, on its device and in evaluation mode.
        data: the data.
        max_tokens: maximum number of tokens that are computed at once.
        precision: a context of autocast.

    Raises:
        RunError: no validation batch has a label.
    """
    sums = ValSums(getattr(data, "val_sources", ()))
    by_position, documents = LossByPosition(), list[DocumentLoss]()
    device = model.head.weight.device
    with precision:
        for number in range(data.num_val_batches):
            batch = load_batch(data, "val", number)
            first_index = 0
            for part in parts_of(batch, max_tokens):
                scores = score(model, part.to(device))
                num_bytes = data.num_label_bytes(part.labels_BM)
                sums.add(scores.sums(), num_bytes, batch.source)
                by_position.add(scores)
                documents += document_losses(scores, part, number, first_index)
                first_index += _num_documents(part)
    metrics = sums.metrics(torch.device("cpu"))
    metrics |= {f"val/document_loss_{name}": x for name, x in quantiles(documents).items()}
    return Evaluated(metrics, by_position, documents)


def _num_documents(batch: Batch) -> int:
    return batch.shape_BM[0] if batch.seqlens is None else len(batch.seqlens)


def _report(found: Evaluated, data: DataSource, trained: TrainedModel, run_dir: Path) -> None:
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

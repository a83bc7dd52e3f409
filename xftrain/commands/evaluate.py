"""`--config-name evaluate`: the held-out loss of a checkpoint's model on any data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.commands.evaluated import evaluate_tasks, evaluated, report
from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.saved_choices import SavedChoices, choose_kernel
from xftrain.commands.trained_model import TrainedModel, load_trained_model
from xftrain.config import registry
from xftrain.config.command_configs import EvaluateConfig
from xftrain.config.compose import validate_as
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import rows_per_batch
from xftrain.data.tokens.vocabulary import describe, is_trained_bpe
from xftrain.errors import ConfigError
from xftrain.evaluation.scores import parts_of
from xftrain.evaluation.tasks import Task, read_task
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.interfaces import DataSource, load_batch
from xftrain.train import hardware
from xftrain.train.same_data import check_data
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory
from xftrain.utils.files import expand_home
from xftrain.utils.printable import one_line, shortened

log = logging.getLogger(__name__)

# Keys of `data` that determine the vocabulary, and so must be those of the checkpoint's run.
_VOCABULARY_KEYS = ("name", "tokenizer", "vocab_size")


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
    refuse_training_folder(run_dir, EvaluateConfig.output)
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        config = checked or validate_as(EvaluateConfig, cfg)
        tasks = _tasks(config)
        device, precision = hardware.resolve(config.accelerator, config.precision)
        result["device"] = hardware.device_name(device)
        reset_peak_memory(device)
        trained = load_trained_model(cfg, config)
        data = None if config.data is None else _data(config, config.data, trained)
        trained.model.to(device, hardware.weights_dtype(precision)).eval()
        folder.start_new_run()
        with hardware.autocast(precision, device):
            if data is not None:
                _validate(config, trained, data, folder, result)
            result["metrics"] |= evaluate_tasks(trained, tasks, config.max_tokens)
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
    return result


def _validate(
    config: EvaluateConfig,
    trained: TrainedModel,
    data: DataSource,
    folder: RunFolder,
    result: dict[str, Any],
) -> None:
    """Chooses the attention kernel, evaluates the validation batches, and reports them."""
    model = trained.model
    target = model.compute_device_dtype()
    first = next(parts_of(load_batch(data, "val", 0), config.max_tokens))
    result["kernel"] = choose_kernel(model, first, *target, SavedChoices(), folder)
    found = evaluated(model, data, config.max_tokens)
    result["metrics"] = found.metrics
    report(found, data, trained, folder.path)


def _tasks(config: EvaluateConfig) -> list[Task]:
    """Reads the tasks before the model is loaded, and checks that there is something to do."""
    if config.data is None and not config.tasks:
        raise ConfigError("~data evaluates tasks alone, and tasks is empty: give one.")
    registry.check_own_classes([config.data] if config.data is not None else [])
    tasks = [read_task(expand_home("tasks", path)) for path in config.tasks]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"tasks must be files of different names, by which result.json lists them, got "
                f"{name} {names.count(name)} times: rename one."
            )
    return tasks


def _data(config: EvaluateConfig, option: OptionConfig, trained: TrainedModel) -> DataSource:
    """The data, in rows as the checkpoint's run had them unless others are configured.

    Raises:
        ConfigError: its tokens are not those of the checkpoint.
    """
    saved = trained.saved["config"]
    seq = config.seq or _saved_size(saved, "seq")
    batch_tokens = config.batch_tokens or _saved_size(saved, "batch_tokens")
    batch_size = rows_per_batch(option, batch_tokens, seq)
    data: DataSource = registry.build(option, seq, batch_size, config.seed, 1)
    check_data(data)
    vocabulary = getattr(data, "vocabulary", None)
    is_same = data.vocab_size <= trained.model.vocab_size and (
        vocabulary is None
        or vocabulary.digest() == trained.vocabulary.digest()
        or is_trained_bpe(vocabulary, describe(trained.vocabulary))
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

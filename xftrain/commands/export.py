"""`--config-name export`: writes a checkpoint's model as a folder that `transformers` loads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.trained_model import TrainedModel, load_trained_model
from xftrain.config.command_configs import ExportConfig
from xftrain.config.compose import validate_as
from xftrain.errors import ConfigError
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.hugging_face.config_json import config_json, generation_config_json
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import family_for
from xftrain.hugging_face.folder import write_folder
from xftrain.hugging_face.tokenizer import end_of_text, tokenizer_files
from xftrain.utils.files import expand_home
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_POSITIONS = 1 << 24  # of an untrusted checkpoint's sequence length
_UNKNOWN_POSITIONS = 2048


def export(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: ExportConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Writes the folder that `path` names, and returns the content of `result.json`.

    Args:
        cfg: what `xftrain.compose(config_name="export")` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Raises:
        ConfigError: the configuration or the checkpoint is wrong, or no class of transformers
            computes its model.
        RunError: the folder cannot be written.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, ExportConfig.output)
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        config = checked or validate_as(ExportConfig, cfg)
        if not config.path:
            raise ConfigError("path is missing: name the folder to write, as in path=exported.")
        if "\0" in config.path:
            raise ConfigError(f"path must be the path of a folder, got {config.path!r}.")
        target = expand_home("path", config.path)
        trained = load_trained_model(cfg, config)
        folder.start_new_run()
        result["metrics"] = _write(trained, target, _DTYPES[config.dtype])
        log.info(
            "step %d of %s: %s", trained.step, one_line(str(config.ckpt)), one_line(str(target))
        )
    return result


def _write(trained: TrainedModel, target: Path, dtype: torch.dtype) -> dict[str, float]:
    """Writes the folder, and returns the figures of the record."""
    facts = describe(trained.model)
    family = family_for(facts)
    end_id, num_tokens = end_of_text(trained.vocabulary), trained.vocabulary.vocab_size
    config = config_json(
        family, facts, max_positions=_max_positions(trained), end_id=end_id, dtype=dtype
    )
    generation = generation_config_json(end_id, num_tokens, facts.vocab_size)
    files = tokenizer_files(trained.vocabulary)
    if not files:
        log.warning(
            "no tokenizer is written, as the vocabulary of ckpt is a class of your own: the folder "
            "takes token ids"
        )
    theirs = family.key_map(facts).to_theirs(trained.model.state_dict())
    weights = {name: _converted(name, weight, dtype) for name, weight in theirs.items()}
    files["generation_config.json"] = json.dumps(generation, indent=2) + "\n"
    write_folder(target, config, weights, files)
    num_bytes = sum(weight.nbytes for weight in weights.values())
    log.info(
        "%s: %d tensors, %.1f MiB; %d tokens in %d rows of the embedding",
        *(family.ARCHITECTURE, len(weights), num_bytes / 2**20, num_tokens, facts.vocab_size),
    )
    return {"export/tensors": len(weights), "export/mib": num_bytes / 2**20}


def _converted(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another dtype.

    Raises:
        ConfigError: a finite number of it is too large for the dtype.
    """
    converted = weight.to(dtype)
    if not torch.equal(converted.isfinite(), weight.isfinite()):
        raise ConfigError(
            f"dtype must have room for the weights, and {one_line(name)} has larger ones than "
            f"{dtype} has: use dtype=float32 or bfloat16."
        )
    return converted


def _max_positions(trained: TrainedModel) -> int:
    """The sequence length of the run, or the number of positions if they are limited."""
    positions = trained.trained_positions
    return positions if positions and positions <= _MAX_POSITIONS else _UNKNOWN_POSITIONS

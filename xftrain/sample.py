"""`--config-name sample`: text from a checkpoint, without a training run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from xftrain import builder, config
from xftrain.config_checks import expanded
from xftrain.errors import ConfigError
from xftrain.files import replace_text
from xftrain.generate import first_prompt, generate, room_after
from xftrain.interfaces import DataSource
from xftrain.memory import peak_memory_mib, reset_peak_memory
from xftrain.model import GPT
from xftrain.results import folder_of, recorded
from xftrain.run_folder import RunFolder, refuse_trained
from xftrain.training import hardware
from xftrain.training.checkpoint import read_checkpoint
from xftrain.training.same_run import refuse_other_model

log = logging.getLogger(__name__)

_EXAMPLE = "ckpt=outputs/<date>/<time>/checkpoints/last.ckpt"


def sample(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """Writes `sample.txt` into the run's folder, and returns what `result.json` holds.

    Args:
        cfg: what `xftrain.compose(config_name="sample")` returns.
        run_dir: the run's folder; made under `outputs/` where it is not given.

    Raises:
        ConfigError: the configuration, the checkpoint or the prompt is wrong.
    """
    run_dir = folder_of(run_dir)
    refuse_trained(run_dir, "a sample")
    folder = RunFolder(run_dir)
    with recorded(folder) as result:
        asked = config.validate(cfg)
        held = _checkpoint(asked["ckpt"])
        # a plain mapping: classes that it may name are refused, as it may be of anyone
        options = config.validate(held["xftrain"]["config"])
        device, precision = hardware.resolve(asked["accelerator"], "auto")
        result["device"] = hardware.device_name(device)
        reset_peak_memory(device)
        data = builder.build_data(options)
        model = _model(options, data, held["state_dict"]).to(device)
        prompt_BM = _prompt(data, asked["prompt"]).to(device)
        model.check_length(prompt_BM.shape[1])
        num_tokens = room_after(model, prompt_BM, asked["num_tokens"])
        if num_tokens < asked["num_tokens"]:
            log.warning("num_tokens: the model has positions for %d more, no further", num_tokens)
        dtype = hardware.compute_dtype(precision)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            tokens_BM = generate(
                model,
                prompt_BM,
                num_tokens,
                vocab_size=data.vocab_size,
                **{key: asked[key] for key in ("temperature", "top_k", "seed")},
            )
        prompt = data.decode(prompt_BM[0].tolist())
        added = data.decode(tokens_BM[0, prompt_BM.shape[1] :].tolist())
        log.info("step %d of %s:\n%s | %s", held["global_step"], asked["ckpt"], prompt, added)
        folder.begin_anew()
        replace_text(run_dir / "sample.txt", f"{prompt} | {added}\n")
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        log.info("sample: %s", run_dir / "sample.txt")
    return result


def _checkpoint(ckpt: str | None) -> dict[str, Any]:
    if ckpt is None:
        raise ConfigError(f"ckpt is missing: name the checkpoint to sample from, as {_EXAMPLE}.")
    path = expanded("ckpt", ckpt)
    if not path.is_file():
        raise ConfigError(f"ckpt must be an existing checkpoint file, got {ckpt!r}, as {_EXAMPLE}.")
    return read_checkpoint(path)


def _model(options: Mapping[str, Any], data: DataSource, state: Mapping[str, Tensor]) -> GPT:
    model = builder.assemble(options, builder.vocab_size(options, data))
    weights = {name.removeprefix("model."): value for name, value in state.items()}
    refuse_other_model(weights, model.state_dict())
    model.load_state_dict(weights)
    return model


def _prompt(data: DataSource, text: str | None) -> Tensor:
    """What is to be gone on from, [1, M]."""
    if text is None:
        return first_prompt(data)
    encode = getattr(data, "encode", None)  # a source of the user's own may have none
    if encode is None:
        raise ConfigError(f"{type(data).__name__} has no encode(): leave prompt=null.")
    return torch.tensor([encode(text)], dtype=torch.int64)

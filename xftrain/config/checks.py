"""Cross-field checks, and checks against the file system and the launched processes.

`compose` checks each value alone, by its type.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from xftrain.config.existing_paths import existing_paths
from xftrain.config.layer_pattern import layer_options
from xftrain.config.mixture_sources import with_checked_sources
from xftrain.config.optimizers import with_checked_optimizers
from xftrain.config.option_config import OptionConfig
from xftrain.config.registry import declared
from xftrain.config.run_config import ModelConfig, Options, RunConfig, TrainerConfig
from xftrain.errors import ConfigError
from xftrain.utils.files import expand_home
from xftrain.utils.processes import check_rank_variables, is_rank, num_ranks


def cross_checked(cfg: RunConfig) -> RunConfig:
    """Runs all cross-field checks and returns the configuration, completed.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    check_sizes(cfg.model)
    cfg = replace(
        cfg, optim=with_checked_optimizers(cfg.optim), data=with_checked_sources(cfg.data)
    )
    check_compile(cfg)
    check_trainer(cfg.trainer)
    check_packages(cfg.logger)
    return _with_existing_files(cfg)


def check_sizes(model: ModelConfig) -> None:
    """Refuses sizes and settings that contradict each other, and a bias that sees future tokens."""
    dim, num_heads = model.dim, model.num_heads
    if dim % num_heads:
        raise ConfigError(
            f"model.dim must be a multiple of model.num_heads, got {dim} and {num_heads}; with "
            f"this dim num_heads can be {_divisors(dim)}."
        )
    if model.init_head == "zero" and model.tie_embeddings:
        raise ConfigError(
            "model.init_head=zero needs model.tie_embeddings=false, got true: the embedding is the "
            "output matrix then, and an embedding of zeros tells no token apart."
        )
    for name, options in layer_options(model).items():
        key = f"model.layers.{name}" if name else "model"
        heads, bias = options.heads, options.bias
        num_kv_heads = getattr(heads, "num_kv_heads", None) or 1
        if heads.name is not None and num_heads % num_kv_heads:
            raise ConfigError(
                f"{key}.heads.num_kv_heads must divide model.num_heads = {num_heads}, got "
                f"{num_kv_heads}; choose one of {_divisors(num_heads)}."
            )
        if reason := bias.name and declared("model/bias", bias.name, "not_for_training"):
            raise ConfigError(f"{key}.bias={bias.name} {reason}.")


def check_compile(cfg: RunConfig) -> None:
    """Refuses options that need compiled code without it, and those that CUDA graphs exclude."""
    if not cfg.compile and cfg.model.activation_budget < 1:
        raise ConfigError(
            "model.activation_budget needs compiled blocks, and compile is false: set "
            "compile=true, or use model.activation_checkpointing."
        )
    if cfg.compile != "cudagraphs":
        return
    if (recomputes := cfg.model.activation_checkpointing) not in (False, "ffn"):
        raise ConfigError(
            "model.activation_checkpointing must be false or ffn with compile=cudagraphs, got "
            f"{recomputes}: recomputation reads the random generator's state, which a graph does "
            "not allow; use model.activation_budget, or compile=true."
        )
    if cfg.trainer.detect_anomaly:
        raise ConfigError(
            "trainer.detect_anomaly synchronizes with the device, which a CUDA graph does not "
            "allow: use compile=false."
        )
    for option in _options_in_graphs(cfg):
        name = option.name  # a user's own class is checked when it is built
        if name is not None and (reason := declared(option.group, name, "no_cuda_graph")):
            raise ConfigError(
                f"{option.key}={name} cannot run with compile=cudagraphs: {reason}, "
                "or compile=true."
            )
    others = cfg.optim.options.get("others") if cfg.optim.name is not None else None
    name = others and others.get("name")
    if name and declared("optim", name, "no_cuda_graph"):
        raise ConfigError(
            f"optim.others={name} cannot run with compile=cudagraphs, as optim={name} cannot: set "
            "optim.others=adamw, or use compile=true."
        )
    for index, entry in enumerate(getattr(cfg.optim, "param_groups", None) or ()):
        if isinstance(entry, Mapping) and entry.get("optimizer") is not None:
            raise ConfigError(
                f"optim.param_groups[{index}].optimizer cannot be set with compile=cudagraphs: a "
                "graph records the step of one optimizer; leave it out, or use compile=true."
            )
    for key in ("accumulate_grad_batches", "devices"):
        if (number := getattr(cfg.trainer, key)) > 1:
            raise ConfigError(
                f"trainer.{key} must be 1 with compile=cudagraphs, got {number}: a graph "
                "writes each batch's gradients to the same place; use compile=true."
            )


def _options_in_graphs(cfg: RunConfig) -> Iterator[OptionConfig]:
    """The options whose code is captured in a CUDA graph, or runs between its replays."""
    yield from (cfg.loss, cfg.optim, cfg.model.attn, cfg.model.norm)
    for options in layer_options(cfg.model).values():
        yield from (options.bias, options.pos, options.heads, options.ffn)
    yield from cfg.callbacks.values()


def check_packages(loggers: Options) -> None:
    """Refuses a logger whose package is an extra that is not installed."""
    for key, logger in loggers.items():
        package = logger.name and declared("logger", logger.name, "needs_package")
        found = importlib.util.find_spec(package) if package else None
        # a folder of that name in the working folder has no origin
        if package and (found is None or found.origin is None):
            raise ConfigError(
                f"logger.{key} needs the package {package}, which is not installed: "
                f'pip install "xftrain[{package}]", or leave it out with logger.{key}=null.'
            )


def check_trainer(trainer: TrainerConfig) -> None:
    """Refuses a malformed `max_time`, and sanity validation steps where validation is off."""
    max_time = trainer.max_time
    if max_time is not None and not re.fullmatch(r"\d{1,4}(:\d\d){3}", max_time, re.ASCII):
        raise ConfigError(
            "trainer.max_time must be days:hours:minutes:seconds or null, as 00:12:00:00 for "
            f"twelve hours, got {max_time!r}."
        )
    if trainer.limit_val_batches == 0 and trainer.num_sanity_val_steps:
        raise ConfigError(
            "trainer.num_sanity_val_steps must be 0 with trainer.limit_val_batches=0, which "
            f"validates nothing, got {trainer.num_sanity_val_steps}."
        )


def _with_existing_files(cfg: RunConfig) -> RunConfig:
    """Expands a quoted `~` in paths, and refuses paths of files that do not exist."""
    data, ckpt = cfg.data, cfg.ckpt
    for key in ("path", "val_path"):
        path = data.options.get(key)
        if data.name is not None and path is not None:
            data = data.with_options(**{key: existing_paths(f"data.{key}", path)})
    if ckpt not in (None, "auto"):
        path = expand_home("ckpt", ckpt)
        if not os.path.isfile(path):
            last = path / "checkpoints" / "last.ckpt"
            near = f"; did you mean {last}?" if os.path.isfile(last) else "."
            raise ConfigError(
                f"ckpt must be auto or an existing checkpoint file, got {ckpt!r}{near}"
            )
        ckpt = str(path)
    return replace(cfg, data=data, ckpt=ckpt, init_from=_initial_weights(cfg))


def _initial_weights(cfg: RunConfig) -> str | None:
    """The path in `init_from`, which must exist unless a checkpoint is resumed instead."""
    if cfg.init_from is None:
        if cfg.init_weights == "average":
            raise ConfigError(
                "init_weights=average needs init_from, a checkpoint with averaged weights, got "
                "init_from=null: set it, or leave init_weights out."
            )
        return None
    path = expand_home("init_from", cfg.init_from)
    last = path / "checkpoints" / "last.ckpt"
    is_run = os.path.isdir(path) and os.path.isfile(last)
    if (cfg.ckpt is None and not os.path.exists(path)) or is_run:
        near = f"; did you mean {last}?" if is_run else "."
        raise ConfigError(
            "init_from must be an existing checkpoint, .safetensors file or Hugging Face folder, "
            f"got {cfg.init_from!r}{near}"
        )
    return str(path)


def check_num_processes(devices: int) -> None:
    """Refuses a run whose number of processes differs from `trainer.devices`.

    Raises:
        ConfigError: how to start them.
    """
    check_rank_variables()
    # some machines set WORLD_SIZE for every program
    if num_ranks() != devices and (is_rank() or devices > 1):
        raise ConfigError(
            f"trainer.devices={devices} needs as many processes, got {num_ranks()}: run "
            "`python -m xftrain trainer=ddp trainer.devices=N`, which starts them all, or start "
            "all with torchrun --nproc-per-node=N."
        )


def _divisors(number: int) -> str:
    """The divisors of a number that are listed in an error message."""
    return ", ".join(str(d) for d in range(1, min(number, 1024) + 1) if number % d == 0)

"""Checks before anything is built that all options can run, and explains why one cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from numbers import Integral
from typing import Any

import torch

from xftrain.commands.builder import assemble
from xftrain.commands.own_parts import check_own_parts
from xftrain.config import registry
from xftrain.config.layer_pattern import layer_names, layer_options
from xftrain.config.run_config import ModelConfig, RunConfig, TrainerConfig
from xftrain.errors import ConfigError
from xftrain.interfaces import (
    IGNORED_LABEL,
    AttnCase,
    Backend,
    Batch,
    DataSource,
    Loss,
    format_layers,
    load_batch,
)
from xftrain.interfaces.batch_checks import describe_value
from xftrain.interfaces.model import checked_reasons
from xftrain.model.backends import all_backends
from xftrain.model.flops import flops_per_token
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.train.loader import ValBatches
from xftrain.train.val_sums import NO_LABEL


def check_runnable(
    cfg: RunConfig,
    loss: Loss,
    vocab_size: int,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Checks that every option supports this batch, in this dtype, on this device.

    The model is assembled on torch's meta device, which allocates nothing; only the user's own
    classes are called.

    Raises:
        ConfigError: an option cannot run; the message names it, the reasons, and the nearest option
            that works.
    """
    with torch.device("meta"):
        model = assemble(cfg.model, vocab_size)
    target = (device, dtype)
    batch_cases = model.attention_cases(*batch.shape_BM, batch.seqlens, target)
    cases = list(batch_cases)
    if batch.seqlens is not None:
        # later batches may have a document as long as the whole row
        cases += model.attention_cases(1, cfg.seq, (cfg.seq,), target)
    _check_backend(cfg.model, model.backend, cases)
    optim = registry.build(cfg.optim)
    if cfg.compile == "cudagraphs":  # only then are callbacks imported here
        _check_graphs(cfg, _parts_in_graphs(cfg, model, loss, optim), batch, device)
    if hasattr(optim, "option_by_parameter"):
        optim.option_by_parameter(model)  # raises if a pattern matches no parameter name
    _check_softcap(cfg, loss)
    _check_device([*(block.ffn for block, _ in model.distinct_blocks()), loss], device)
    for call, _ in cases:
        model.check_length(max(call.bias.seqlens or (call.shape.M,)))
    flops_per_token(model, batch, target)  # raises if an option declares no number
    is_mixed = hardware.is_mixed(cfg.trainer.precision, dtype)
    check_own_parts(cfg, vocab_size, batch, batch_cases, is_mixed)


def first_batch(data: DataSource, rank: int) -> Batch:
    """The first training batch of a rank, with which the options are checked.

    Raises:
        ConfigError: the data source returns no batch, or no number of label bytes.
    """
    batch = load_batch(data, "train", 0, rank, is_first=True)
    num_bytes: object = data.num_label_bytes(batch.labels_BM)
    if num_bytes is not None and not isinstance(num_bytes, Integral):
        raise ConfigError(
            f"data: {type(data).__name__}.num_label_bytes must return an integer, or None if the "
            f"data is not text, got {describe_value(num_bytes)}."
        )
    return batch


def check_labels(data: DataSource, trainer: TrainerConfig) -> None:
    """Checks that a validation batch has a label.

    Raises:
        ConfigError: no validation batch has a label.
    """
    devices, overfit_batches = trainer.devices, trainer.overfit_batches
    limit = trainer.limit_val_batches
    if limit == 0:
        return
    validated = (ValBatches(data, rank, devices, overfit_batches, limit) for rank in range(devices))
    if not any((batch.labels_BM != IGNORED_LABEL).any() for batch in chain(*validated)):
        raise ConfigError(NO_LABEL)


def _check_backend(model: ModelConfig, backend: Backend, cases: Iterable[AttnCase]) -> None:
    """Checks that the backend runs every attention call of the model."""
    for call, layers in cases:
        reasons = backend.unsupported_reasons(call)
        if not reasons:
            continue
        works = [other.name for other in all_backends() if not other.unsupported_reasons(call)]
        raise ConfigError(
            f"model.attn={model.attn.label} cannot run "
            f"{_described(model, layers[0])} in {str(call.dtype).removeprefix('torch.')} "
            f"on {call.device.type}: {'; '.join(reasons)}. Nearest choice that works: "
            f"model.attn={works[0]}."
        )


def _check_device(parts: Iterable[object], device: torch.device) -> None:
    """Checks that the feed-forwards and the loss run on the device."""
    for part in parts:
        unsupported = getattr(part, "unsupported", None)
        if unsupported is None:
            continue
        if reasons := checked_reasons(part, "unsupported", unsupported(device)):
            raise ConfigError(f"{'; '.join(reasons)}.")


def _check_softcap(cfg: RunConfig, loss: Loss) -> None:
    """Checks that the loss caps the logits if the model does."""
    cap = cfg.model.logit_softcap
    if cap is not None and not getattr(loss, "takes_softcap", False):
        raise ConfigError(
            f"model.logit_softcap must be null with loss={cfg.loss.label}, which does not declare "
            f"takes_softcap, got {cap}: set it to null, or use loss=auto."
        )


def _parts_in_graphs(cfg: RunConfig, model: GPT, loss: Loss, optim: Any) -> dict[str, Any]:
    """The objects that `_check_graphs` asks, by key; callbacks are not built yet, only classes."""
    parts = {"loss": loss, "optim": optim, "model.attn": model.backend, "model.norm": model.norm}
    if hasattr(optim, "option_by_parameter"):
        for option in optim.option_by_parameter(model).values():
            parts.setdefault(f"{type(option).__name__} of optim.param_groups", option)
    for block, layers in model.distinct_blocks():
        place = f"in {format_layers(layers)}"
        parts[f"model.pos {place}"] = model.position_encoding(layers[0])
        parts |= {f"model.heads {place}": block.heads, f"model.ffn {place}": block.ffn}
    callbacks = cfg.callbacks.values()
    return parts | {option.key: registry.class_of(option) for option in callbacks}


def _check_graphs(
    cfg: RunConfig, parts: Mapping[str, Any], batch: Batch, device: torch.device
) -> None:
    if cfg.compile != "cudagraphs":
        return
    if device.type != "cuda":
        raise ConfigError(f"compile=cudagraphs needs a CUDA GPU, got {device.type}: use true.")
    if batch.seqlens is not None:
        raise ConfigError(
            "compile=cudagraphs replays batches of one shape, and the shape of packed documents "
            "differs by batch: use compile=true."
        )
    for key, part in parts.items():  # `config.checks` has checked the built-in options
        reason = getattr(part, "no_cuda_graph", None)
        if isinstance(reason, str | bool) and reason:  # a callback's class may have a property
            raise ConfigError(f"{key} cannot run with compile=cudagraphs: {reason}.")


def _described(model: ModelConfig, layer: int) -> str:
    """The bias and the heads of a layer, written as overrides."""
    names = layer_names(model)
    name = names[layer % len(names)]
    options, key = layer_options(model)[name], f"model.layers.{name}" if name else "model"
    return f"{key}.bias={options.bias.label} with {key}.heads={options.heads.label}"

"""Logs the predicted memory of a run, and chooses the recompute plan."""

from __future__ import annotations

import logging

import torch

from xftrain.config.run_config import RunConfig
from xftrain.errors import first_line
from xftrain.interfaces import Batch, Loss
from xftrain.memory.peak import Peak
from xftrain.memory.prediction import predict
from xftrain.model.block import RecomputePlan
from xftrain.model.gpt import GPT
from xftrain.utils.device_memory import total_memory_bytes, usable_memory_bytes

log = logging.getLogger(__name__)

_GIB = 2**30


def plan_memory(
    cfg: RunConfig,
    model: GPT,
    loss: Loss,
    batch: Batch,
    dtype: torch.dtype,
    device: torch.device,
) -> float | None:
    """Predicts the peak, sets `model.recompute_plan` if recomputation is `auto`, and logs both.

    Args:
        cfg: the checked configuration.
        model: the model, not compiled yet, with its attention backend chosen.
        loss: the cross-entropy loss.
        batch: the first batch of the run.
        dtype: dtype of matmuls and attention.
        device: the device of the run.

    Returns:
        The peak in MiB, or None if a user's own layer cannot run on fake tensors.
    """
    is_auto = cfg.model.activation_checkpointing == "auto"
    try:
        peak = predict(cfg, model, loss, batch, dtype, device)
    except Exception as error:  # a user's own layer may raise anything
        log.debug("memory: not predicted: %s", first_line(error))
        if is_auto:
            model.recompute_plan = RecomputePlan(blocks=len(model.blocks))
            log.info("memory: not predicted, so all %d blocks are recomputed", len(model.blocks))
        return None
    limit = usable_memory_bytes(device)
    if is_auto:
        model.recompute_plan = peak.cheapest_fitting_plan(limit)
    summary = _summary(peak, model.recompute_plan, total_memory_bytes(device))
    summary = "; ".join([summary, *peak.assumptions])
    if is_auto:
        summary += f"; {_recomputation(model)}"
    log.info("%s", summary)
    if not peak.fits(limit, model.recompute_plan):
        log.warning("%s", _warning(cfg, peak, model, loss, limit))
    return peak.total(model.recompute_plan) / 2**20


def _recomputation(model: GPT) -> str:
    (blocks, ffns), num_blocks = model.recompute_plan, len(model.blocks)
    if blocks:
        others = " and the feed-forwards of the others" if ffns > blocks else ""
        return f"{blocks} of {num_blocks} blocks{others} are recomputed to fit"
    if ffns:
        return f"the feed-forwards of {ffns} of {num_blocks} blocks are recomputed to fit"
    return "nothing is recomputed"


def _summary(peak: Peak, recomputed: RecomputePlan, memory: int) -> str:
    total, transient = peak.total(recomputed), peak.transient_bytes(recomputed)
    # GiB would show 0 for a small model
    unit, name, digits = (_GIB, "GiB", 1) if total >= _GIB else (2**20, "MiB", 0)
    parts = {
        "weights, gradients and optimizer": peak.state,
        "activations": peak.activations(recomputed),
        "logits" if transient == peak.loss else "the backward pass of a block": transient,
    }
    listed = ", ".join(f"{part} {size / unit:,.{digits}f}" for part, size in parts.items())
    return (
        f"memory: about {total / unit:,.{digits}f} {name} at the peak ({listed}), "
        f"of {memory / _GIB:.1f} GiB"
    )


def _warning(cfg: RunConfig, peak: Peak, model: GPT, loss: Loss, limit: int) -> str:
    is_graph = cfg.compile == "cudagraphs"  # excludes some of the remedies
    remedies = []
    if is_graph and not any(model.recompute_plan):
        remedies.append("model.activation_checkpointing=ffn")
    if is_graph:
        remedies.append("a smaller model.activation_budget")
    elif model.recompute_plan.blocks < peak.num_blocks:
        remedies.append("model.activation_checkpointing=auto")
    accumulated = "" if is_graph else " with more trainer.accumulate_grad_batches"
    remedies.append(f"a smaller data.batch_size{accumulated}")
    if (smaller := getattr(loss, "smaller_option", None)) is not None:
        remedies.append(f"loss={smaller}")
    if cfg.trainer.precision == "32-true":
        remedies.append("trainer.precision=bf16-mixed")
    return (
        f"memory: more than {limit / _GIB:.1f} GiB may not fit; what would help: "
        f"{', '.join(remedies)}; the run continues, since the prediction may be wrong"
    )

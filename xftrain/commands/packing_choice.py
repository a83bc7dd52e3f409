"""Decides `data.packing=null` where the attention backend, the device and the checkpoint are known.

The decision becomes part of the run's configuration, so that a run that resumes it has the same
rows, on whatever device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xftrain.checkpoint.header import header
from xftrain.commands.builder import assemble
from xftrain.config import registry
from xftrain.config.layer_pattern import layer_options
from xftrain.config.run_config import ModelConfig, RunConfig
from xftrain.train import distributed
from xftrain.utils.processes import rank

log = logging.getLogger(__name__)


def with_packing(
    cfg: RunConfig,
    shown: dict[str, Any],
    ckpt: Path | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and its plain values, with null in `data.packing` replaced.

    Args:
        cfg: the checked configuration; a data source of the user's own is left as it is.
        shown: its plain values with secrets hidden.
        ckpt: the checkpoint to resume, or None.
        device: the device of this rank.
        dtype: dtype of attention.
    """
    data = cfg.data
    if data.name is None or getattr(data, "packing", False) is not None:
        return cfg, shown
    packing = _saved_packing(ckpt, data.name)
    reason = "as the resumed run has it"
    if packing is None:
        # of rank 0, as the ranks must have the same rows even if their devices differ
        refusal = distributed.broadcast_from_rank_0(_reason_against(cfg, device, dtype))
        packing = refusal is None
        reason = refusal or (
            f"because model.attn={cfg.model.attn.label} computes packed rows at full speed on "
            f"{device.type}"
        )
    log.info("data.packing=null: %s, %s", str(packing).lower(), reason)
    cfg = replace(cfg, data=data.with_options(packing=packing))
    return cfg, {**shown, "data": {**shown["data"], "packing": packing}}


def _saved_packing(ckpt: Path | None, name: str) -> bool | str | None:
    """The packing of the resumed run, which rank 0 reads for all ranks; None if there is none."""
    saved: Any = None
    if ckpt is not None and rank() == 0:
        found: Any = header(ckpt) or {}
        for key in ("config", "data"):
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and found.get("name") == name:
            saved = found.get("packing", False)  # an old version had plain rows only
    saved = distributed.broadcast_from_rank_0(saved)
    return saved if isinstance(saved, bool) or saved == "best_fit" else None


def _reason_against(cfg: RunConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why rows are not packed unless the user asks for it; None if they are."""
    if cfg.compile == "cudagraphs":
        return "because compile=cudagraphs replays batches of one shape"
    if own := _own_bias(cfg.model):
        return f"because {own} is a class of your own, which may ignore documents"
    name = f"model.attn={cfg.model.attn.label}"
    if not registry.build(cfg.model.attn).packs_at_full_speed(device):
        return f"because {name} does not compute packed rows at full speed on {device.type}"
    with torch.device("meta"):
        model = assemble(cfg.model, num_tokens=1)
    seqlens = (cfg.seq,) * cfg.batch_size
    cases = model.attention_cases(1, sum(seqlens), seqlens, (device, dtype))
    reasons = [why for case in cases for why in model.backend.unsupported_reasons(case.call)]
    return f"because {name} cannot compute packed rows ({reasons[0]})" if reasons else None


def _own_bias(model: ModelConfig) -> str | None:
    """The key of a bias whose class is the user's own; None if all are built in."""
    for options in layer_options(model).values():
        if options.bias.name is None:
            return options.bias.key
    return None

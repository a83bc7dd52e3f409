"""Every choice runs or is refused with the reason, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from xftrain.attention.backends.auto import all_backends
from xftrain.builder import assemble
from xftrain.errors import ConfigError
from xftrain.interfaces import Batch, Loss


def check_runs(
    options: Mapping[str, Any],
    loss: Loss,
    vocab_size: int,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Asks every part whether it runs this batch, in this dtype, on this device.

    The model is assembled on torch's meta device, which allocates nothing.

    Raises:
        ConfigError: the choice, the reasons, and the nearest choice that works.
    """
    with torch.device("meta"):
        model = assemble(options, vocab_size)
    bias, shape = model.attention_facts(*batch.shape_BM, batch.seqlens)
    reasons = model.backend.unsupported(bias, shape, dtype, device)
    if reasons:
        works = [
            backend.name
            for backend in all_backends()
            if not backend.unsupported(bias, shape, dtype, device)
        ]
        raise ConfigError(
            f"model.attn={_name(options, 'attn')} cannot run model.bias={_name(options, 'bias')} "
            f"with model.heads={_name(options, 'heads')} in {str(dtype).removeprefix('torch.')} "
            f"on {device.type}: {'; '.join(reasons)}. Nearest choice that works: "
            f"model.attn={works[0]}."
        )
    for part in (model.blocks[0].ffn, loss):
        ask = getattr(part, "unsupported", None)
        if ask is not None and (why := ask(device)):
            raise ConfigError(f"{'; '.join(why)}.")
    model.check_length(max(batch.seqlens or (shape.M,)))


def _name(options: Mapping[str, Any], group: str) -> str:
    node = options["model"][group]
    return str(node.get("name", node.get("_target_")))

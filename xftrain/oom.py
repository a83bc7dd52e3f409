"""What a run that is out of memory says: its sizes, its peak, and what would save the most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from xftrain.errors import RunError
from xftrain.interfaces import Batch
from xftrain.memory import peak_memory_mib

_TENSORS_A_BLOCK = 16  # of B x M x D that a block keeps for its backward pass, about
_COPIES_OF_LOGITS = 3  # themselves, their softmax and their gradient


def out_of_memory(
    error: BaseException,
    options: Mapping[str, Any],
    vocab_size: int,
    batch: Batch,
    device: torch.device,
) -> RunError:
    """The error as one sentence, with the three settings that would save the most.

    Args:
        error: the allocator's.
        options: the checked configuration.
        vocab_size: V.
        batch: the first of the run.
        device: where it ran.
    """
    rows, tokens = batch.shape_BM
    peak = peak_memory_mib(device) / 1024
    total = ""
    if device.type == "cuda":
        total = f" of {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB"
    savings = sorted(_savings(options, vocab_size, rows, tokens), reverse=True)[:3]
    remedies = ", ".join(f"{text} (about {gib:.1f} GiB)" for gib, text in savings)
    return RunError(
        f"out of memory on {device.type} at {rows} x {tokens} tokens with a peak of {peak:.1f} "
        f"GiB{total} ({str(error).strip().splitlines()[0] if str(error) else type(error).__name__})"
        f"; what would save the most: {remedies}."
    )


def _savings(
    options: Mapping[str, Any], vocab_size: int, rows: int, tokens: int
) -> list[tuple[float, str]]:
    """GiB, and the setting that would save them; rough, to tell the large from the small."""
    model = options["model"]
    layers, heads, dim = model["num_layers"], model["num_heads"], model["dim"]
    width = 4 if options["trainer"]["precision"] == "32-true" else 2  # bytes a number
    gib = 2**30
    activations = layers * _TENSORS_A_BLOCK * rows * tokens * dim * width / gib
    logits = _COPIES_OF_LOGITS * rows * tokens * vocab_size * 4 / gib
    found: list[tuple[float, str]] = []
    if model["attn"].get("name") == "naive":
        # scores and weights of each layer, in float32
        found.append((2 * layers * rows * heads * tokens**2 * 4 / gib, "model.attn=auto"))
    if not model["activation_checkpointing"]:
        kept = activations * (1 - 1 / layers - 1 / _TENSORS_A_BLOCK)
        found.append((max(kept, 0.0), "model.activation_checkpointing=true"))
    if options["loss"].get("name") in ("auto", "full"):
        found.append((logits, "loss=chunked"))
    if rows > 1:
        half = f"data.batch_size={rows // 2} with trainer.accumulate_grad_batches doubled"
        found.append(((activations + logits) / 2, half))
    elif options["seq"] < tokens:  # a row of packed documents
        found.append(((activations + logits) / 2, f"batch_tokens={tokens // 2}"))
    else:
        shorter = f"seq={tokens // 2} batch_tokens={tokens // 2}"
        found.append(((activations + logits) / 2, shorter))
    if options["trainer"]["precision"] == "32-true":
        found.append((activations / 2, "trainer.precision=bf16-mixed"))
    else:
        found.append((activations / 4, "a smaller model.dim"))
    return found

"""Predicts the peak of a training step: state, activations, and the loss.

Gradients count as if they were there all the time, though in most steps they come and go. Not
counted: masks of M x M, copies inside kernels, what an allocator rounds up, the CUDA context,
and on the CPU the process itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import get_object

from xftrain import registry
from xftrain.interfaces import Batch, Loss
from xftrain.kernels.softmax_gradient import has_kernel
from xftrain.losses.auto import Auto
from xftrain.losses.fused import Fused
from xftrain.losses.liger import Liger
from xftrain.model import GPT
from xftrain.peak.figures import Peak
from xftrain.peak.layers import run_layers
from xftrain.training.narrow_weights import narrow_layers, strangers
from xftrain.training.optim.adamw import AdamW


def predict(
    options: Mapping[str, Any],
    model: GPT,
    loss: Loss,
    batch: Batch,
    dtype: torch.dtype,
    device: torch.device,
) -> Peak:
    """The peak of a training step with such a batch.

    Args:
        options: the checked configuration.
        model: on any device, torch's meta device included.
        loss: cross-entropy. One of the user's own counts as `chunked` if it has `chunk_tokens`,
            else as `full`.
        batch: the first of the run.
        dtype: of matrix products and attention.
        device: where the run will be.
    """
    is_mixed = dtype != torch.float32 and options["trainer"]["precision"] != "bf16-true"
    is_compiled = bool(options["compile"])
    layers = run_layers(model, batch, dtype, device, is_mixed=is_mixed, is_compiled=is_compiled)
    whole = block = layers.block.activations
    ffn = layers.ffn
    if is_compiled:  # what it may not keep, it makes again in its backward pass
        share = options["model"]["activation_budget"]
        block = layers.block_input + int(share * (whole - layers.block_input))
        ffn = int(share * ffn)
    optim = registry.build("optim", "optim", options["optim"])
    narrow: set[torch.Tensor] = set()
    if is_mixed and dtype == torch.bfloat16:
        narrow = _with_narrow_gradients(options, model, optim, device)
    # an optimizer of the user's own that does not say what it keeps is taken for AdamW
    state_bytes = getattr(optim, "state_bytes", AdamW().state_bytes)
    weights = trained = state = 0
    for parameter in model.parameters():
        narrowed = parameter.dtype == torch.float32 and not is_mixed
        size = parameter.numel() * (dtype if narrowed else parameter.dtype).itemsize
        weights += size
        grad_size = parameter.numel() * dtype.itemsize if parameter in narrow else size
        trained += grad_size * parameter.requires_grad
        if parameter.requires_grad:
            state += state_bytes(parameter) * size // max(1, parameter.nbytes)
    trainer = options["trainer"]
    # batches before a step's last are summed beside what DDP sums over ranks
    is_twice = trainer["devices"] > 1 and trainer["accumulate_grad_batches"] > 1
    head = model.head.weight.numel() * dtype.itemsize
    return Peak(
        weights=weights,
        gradients=trained * (2 if is_twice else 1),
        optimizer=state,
        is_optimizer_known=hasattr(optim, "state_bytes"),
        casts=len(model.blocks) * layers.block.casts + head if is_mixed else 0,
        num_blocks=len(model.blocks),
        block=block,
        ffn=ffn,
        block_input=layers.block_input,
        block_backward=layers.block_backward + whole - block,
        rest=layers.norm + layers.norm_output,
        loss=_loss_bytes(loss, batch.num_tokens, model, dtype, device),
    )


def _with_narrow_gradients(
    options: Mapping[str, Any], model: GPT, optim: Any, device: torch.device
) -> set[torch.Tensor]:
    """The weights whose gradients come in bfloat16, in a run that is mixed."""
    trainer = options["trainer"]
    sums_up = trainer["accumulate_grad_batches"] > 1 or trainer["devices"] > 1  # in float32
    if not isinstance(optim, AdamW) or sums_up or not optim.is_own(device):
        return set()
    targets = [
        one["_target_"] for one in options["callbacks"].values() if "_target_" in (one or {})
    ]
    if strangers([optim, *(get_object(target) for target in targets)]):
        return set()
    return {layer.weight for layer in narrow_layers(model)}


def chosen_loss(loss: Loss, num_tokens: int, vocab_size: int, device: torch.device) -> Loss:
    """The loss itself, or what `auto` takes for a batch."""
    return loss.choice(num_tokens, vocab_size, device) if isinstance(loss, Auto) else loss


def _loss_bytes(
    loss: Loss, num_tokens: int, model: GPT, dtype: torch.dtype, device: torch.device
) -> int:
    """Logits, and what is made of them, at the worst moment.

    torch's cross-entropy has three tensors in float32 then: the log-softmax, its gradient, and
    that of the logits. The kernels of `fused` and `liger` overwrite the logits, and make the
    gradients of the hidden states and of the matrix, in float32, in the forward pass. With the
    latter there is a chunk's part of it, or a copy in the weights' dtype, but where `fused` adds it
    up in the product and weights are float32.
    """
    vocab_size, dim = model.head.weight.shape
    loss = chosen_loss(loss, num_tokens, vocab_size, device)
    rows = min(num_tokens, getattr(loss, "chunk_tokens", num_tokens))
    if isinstance(loss, Liger):  # as wide as the hidden states, all in all
        chunks = -(-vocab_size // dim)
        rows = min(num_tokens, 1 << (-(-num_tokens // chunks) - 1).bit_length())
    if not isinstance(loss, Fused | Liger):
        return 3 * 4 * rows * vocab_size
    on_gpu = isinstance(loss, Fused) and device.type == "cuda" and dtype.itemsize == 2
    part = 0 if on_gpu and model.head.weight.dtype == torch.float32 else dtype.itemsize
    gradients = num_tokens * dim * dtype.itemsize + vocab_size * dim * (4 + part)
    in_torch = 0 if has_kernel(device) else 2 * 4  # bytes: a logit in float32 and its log-softmax
    return rows * vocab_size * (dtype.itemsize + in_torch) + gradients

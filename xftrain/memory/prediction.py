"""Predicts the peak memory of a training step from its state, activations and loss.

Gradients count as permanently allocated, though each step frees them. The prediction excludes M x M
masks, copies inside kernels, rounding by the allocator, the CUDA context, and on the CPU the memory
of the process itself.
"""

from __future__ import annotations

from typing import Any

import torch

from xftrain.config import registry
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import RunConfig
from xftrain.interfaces import Batch, Loss, logits_bytes, two_moments_bytes
from xftrain.memory.layers import BlockBytes, run_layers
from xftrain.memory.peak import LayerBytes, Peak
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.train.bf16_weights import layers_with_copies, weight_modifiers

_OPTIMIZER_ASSUMPTION = (
    "optim has no state_bytes, so its state is assumed to be as large as AdamW's"
)
_LOSS_ASSUMPTION = "loss has no peak_bytes, so it is assumed to hold the whole logits"
_ATTENTION_ASSUMPTIONS = {
    "measured": "model.attn has no transient_bytes, so it was measured on fake tensors",
    "assumed": "model.attn has no transient_bytes and cannot run backward on fake tensors, so its "
    "backward pass is assumed to hold its largest tensor once more",
}


def predict(
    cfg: RunConfig,
    model: GPT,
    loss: Loss,
    batch: Batch,
    dtype: torch.dtype,
    device: torch.device,
) -> Peak:
    """Predicts the peak memory of a training step on a batch of this shape, in bytes.

    Args:
        cfg: the checked configuration.
        model: the model, on any device, torch's meta device included.
        loss: the loss; without `peak_bytes` it is assumed to hold all logits.
        batch: the first batch of the run.
        dtype: dtype of matmuls and attention.
        device: the device of the run.
    """
    is_mixed = hardware.is_mixed(cfg.trainer.precision, dtype)
    is_compiled = bool(cfg.compile)
    ran = run_layers(model, batch, dtype, device, is_mixed=is_mixed, is_compiled=is_compiled)
    share = cfg.model.activation_budget if is_compiled else 1.0
    optim = registry.build(cfg.optim)
    with_bf16: set[torch.Tensor] = set()
    if is_mixed and dtype == torch.bfloat16:
        with_bf16 = _with_bf16_gradients(cfg, model, optim, device)
    by_parameter = getattr(optim, "option_by_parameter", None)
    group_options = {} if by_parameter is None else by_parameter(model)
    is_optimizer_known = True
    weights = trained = state = 0
    for parameter in model.parameters():
        narrowed = parameter.dtype == torch.float32 and not is_mixed
        size = parameter.numel() * (dtype if narrowed else parameter.dtype).itemsize
        weights += size
        grad_size = parameter.numel() * dtype.itemsize if parameter in with_bf16 else size
        trained += grad_size * parameter.requires_grad
        if parameter.requires_grad:
            option = group_options.get(parameter, optim)
            is_optimizer_known &= hasattr(option, "state_bytes")
            state_bytes = getattr(option, "state_bytes", two_moments_bytes)
            state += state_bytes(parameter) * size // max(1, parameter.nbytes)
    averaging = any(_keeps_average(option) for option in cfg.callbacks.values())
    if averaging:  # in float32 at least, beside the weights
        state += sum(one.numel() * max(4, one.itemsize) for one in model.parameters())
    assumptions = [] if is_optimizer_known else [_OPTIMIZER_ASSUMPTION]
    assumptions += [] if hasattr(loss, "peak_bytes") else [_LOSS_ASSUMPTION]
    sources = {block.attention_source for block in ran.blocks}
    assumptions += [text for source, text in _ATTENTION_ASSUMPTIONS.items() if source in sources]
    trainer = cfg.trainer
    # accumulated gradients are allocated in addition to DDP's buckets
    is_twice = trainer.devices > 1 and trainer.accumulate_grad_batches > 1
    head = model.head.weight.numel() * dtype.itemsize
    return Peak(
        weights=weights,
        gradients=trained * (2 if is_twice else 1),
        optimizer=state,
        head_cast=head if is_mixed else 0,
        layers=tuple(_layer_bytes(block, share, is_mixed=is_mixed) for block in ran.blocks),
        after_layers=ran.norm + ran.norm_output,
        loss=_loss_bytes(loss, batch.num_tokens, model, dtype, device),
        assumptions=tuple(assumptions),
    )


def _keeps_average(option: OptionConfig) -> bool:
    """Whether a callback keeps an average of the weights; a user's own is not asked."""
    name = option.name
    return name is not None and bool(registry.declared(option.group, name, "keeps_average"))


def _layer_bytes(block: BlockBytes, share: float, *, is_mixed: bool) -> LayerBytes:
    """The memory of a layer that saves a share of its activations and recomputes the others."""
    whole = block.saved.activations
    saved = block.input + int(share * (whole - block.input)) if share < 1 else whole
    ffn = int(share * block.ffn) if share < 1 else block.ffn
    casts = block.saved.casts if is_mixed else 0
    return LayerBytes(saved, ffn, block.input, block.backward + whole - saved, casts)


def _with_bf16_gradients(
    cfg: RunConfig, model: GPT, optim: Any, device: torch.device
) -> set[torch.Tensor]:
    """The float32 weights whose gradients are bfloat16 in a run with mixed precision."""
    trainer = cfg.trainer
    sums_up = trainer.accumulate_grad_batches > 1 or trainer.devices > 1  # sums are float32
    takes = getattr(optim, "takes_bf16_gradients", None)
    if sums_up or takes is None or not takes(device):
        return set()
    if weight_modifiers([optim, *map(registry.class_of, cfg.callbacks.values())]):
        return set()
    return {layer.weight for layer in layers_with_copies(model)}


def _loss_bytes(
    loss: Loss, num_tokens: int, model: GPT, dtype: torch.dtype, device: torch.device
) -> int:
    """The loss's `peak_bytes`, or an upper bound from the whole logits if it has none."""
    peak_bytes = getattr(loss, "peak_bytes", None)
    if peak_bytes is None:
        return logits_bytes(num_tokens, model.vocab_size)
    capped = {} if model.logit_softcap is None else {"softcap": model.logit_softcap}
    return int(peak_bytes(num_tokens, model.head.weight, dtype, device, **capped))

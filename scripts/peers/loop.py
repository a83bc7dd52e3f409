"""A plain training loop, as a user would write it; it trains every peer except xftrain."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers.setup import BETAS, CLIP, LOG_EVERY, WEIGHT_DECAY, Setup, config_overrides
from peers.stopwatch import Stopwatch, device_peak, model_flops
from xftrain import compose
from xftrain.commands import builder
from xftrain.config.compose import validate_as
from xftrain.config.run_config import RunConfig
from xftrain.interfaces import Batch, DataSource
from xftrain.train.hardware import compute_dtype
from xftrain.train.parameter_groups import decay_groups


@dataclass(frozen=True)
class PeerModel:
    """A model to train, with its loss.

    Attributes:
        loss: maps tokens and labels [B, M] to the mean cross-entropy; already compiled, if at all.
        model: the module whose parameters are trained, on its device.
        head: the output matrix.
        description: the model's architecture, for the table.
        kernel: the attention kernel, or "" if it is not known.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    model: nn.Module
    head: Tensor
    description: str
    kernel: str = ""


class ModelWithLoss(nn.Module):
    """A model and its cross-entropy in one module, so that both are compiled as one graph.

    Args:
        model: the model.
        logits: computes the logits from the model and the tokens; by default, `model(tokens)`.
    """

    def __init__(
        self, model: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, tokens_BM: Tensor, labels_BM: Tensor) -> Tensor:
        """Returns the mean cross-entropy."""
        model = self.model
        logits = model(tokens_BM) if self.logits is None else self.logits(model, tokens_BM)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels_BM.flatten())


def compiled(setup: Setup, module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the module compiled as one graph if the setup says so, else the module itself."""
    return torch.compile(module) if setup.compile else module


def run_config(setup: Setup) -> RunConfig:
    """Returns xftrain's checked configuration for a measurement."""
    return validate_as(RunConfig, compose(*config_overrides(setup)))


def train(setup: Setup, peer: PeerModel, data: DataSource | None = None) -> dict[str, Any]:
    """Trains a model and returns its row.

    Args:
        setup: the measurement.
        peer: the model.
        data: the source of the batches; by default, xftrain's own for this setup.
    """
    data = data or builder.build_data(run_config(setup.without_overrides()))
    device = torch.device(setup.device)
    dtype = compute_dtype(setup.precision)
    optimizer = adamw(setup, peer.model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    watch = Stopwatch(**Stopwatch.arguments(setup))
    peer.model.train()
    for step in range(setup.warmup + setup.steps):
        tokens, labels = moved(data.batch("train", step), device)
        with torch.autocast(setup.device, dtype, enabled=dtype != torch.float32):
            loss = peer.loss(tokens, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % LOG_EVERY == 0:
            print(f"{setup.peer}: step {step + 1}, loss {loss.item():.4f}", file=sys.stderr)
        watch.after_step(loss)
    flops = model_flops(peer.model, peer.head, setup.sizes, data.batch("train", 0))
    return {
        "parameters": sum(p.numel() for p in peer.model.parameters()),
        "model": peer.description,
        "kernel": peer.kernel,
        **watch.figures(flops, device_peak(setup)),
    }


def moved(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the tokens and labels of a batch, copied without waiting for the device."""
    tokens, labels = batch.tokens_BM, batch.labels_BM
    if device.type == "cuda":
        tokens, labels = tokens.pin_memory(), labels.pin_memory()
    return tokens.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def adamw(setup: Setup, model: nn.Module) -> torch.optim.AdamW:
    """Returns the optimizer, with the parameters split for weight decay by xftrain's rule."""
    decayed, free = decay_groups(model)
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=setup.lr, betas=BETAS, fused=True)

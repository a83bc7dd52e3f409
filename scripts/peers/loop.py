"""The loop that a user would write: every peer but xftrain is trained by it."""

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
from xftrain.interfaces import DataSource
from xftrain.train.hardware import compute_dtype
from xftrain.train.parameter_groups import decay_groups


@dataclass(frozen=True)
class Trained:
    """What the loop trains.

    Attributes:
        loss: tokens and labels [B, M] to the mean cross-entropy; compiled, if it is to be.
        model: whose parameters are trained; on the device.
        head: the output matrix.
        about: how the model differs from others of its size.
        kernel: of attention, where the peer says it.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    model: nn.Module
    head: Tensor
    about: str
    kernel: str = ""


class WithLoss(nn.Module):
    """A model that gives logits, with the cross-entropy in it, so that both are compiled as one.

    Args:
        model: to call.
        logits: tokens to logits; the model itself where it needs no more than tokens.
    """

    def __init__(
        self, model: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, tokens_BM: Tensor, labels_BM: Tensor) -> Tensor:
        """Mean cross-entropy."""
        model = self.model
        logits = model(tokens_BM) if self.logits is None else self.logits(model, tokens_BM)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels_BM.flatten())


def whole(setup: Setup, module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The module compiled as one graph, or as it is."""
    return torch.compile(module) if setup.compile else module


def options_of(setup: Setup) -> RunConfig:
    """xftrain's checked configuration of the measurement."""
    return validate_as(RunConfig, compose(*config_overrides(setup)))


def train(setup: Setup, trained: Trained, data: DataSource | None = None) -> dict[str, Any]:
    """The row of a peer that this loop trains.

    Args:
        setup: what is measured.
        trained: the model.
        data: where batches come from; xftrain's own source by default.
    """
    data = data or builder.build_data(options_of(setup.plain()))
    device, on_gpu = torch.device(setup.device), setup.device == "cuda"
    dtype = compute_dtype(setup.precision)
    optimizer = adamw(setup, trained.model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    watch = Stopwatch(**Stopwatch.arguments(setup))
    trained.model.train()
    for step in range(setup.warmup + setup.steps):
        batch = data.batch("train", step)
        tokens, labels = batch.tokens_BM, batch.labels_BM
        if on_gpu:
            tokens, labels = tokens.pin_memory(), labels.pin_memory()
        tokens = tokens.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with torch.autocast(setup.device, dtype, enabled=dtype != torch.float32):
            loss = trained.loss(tokens, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % LOG_EVERY == 0:
            print(f"{setup.peer}: step {step + 1}, loss {loss.item():.4f}", file=sys.stderr)
        watch.after_step(loss)
    flops = model_flops(trained.model, trained.head, setup.sizes, data.batch("train", 0))
    return {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "model": trained.about,
        "kernel": trained.kernel,
        **watch.figures(flops, device_peak(setup)),
    }


def adamw(setup: Setup, model: nn.Module) -> torch.optim.AdamW:
    """Two groups, divided by xftrain's rule for every peer."""
    decayed, free = decay_groups(model)
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=setup.lr, betas=BETAS, fused=True)

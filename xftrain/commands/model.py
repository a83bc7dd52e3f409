"""Builds the model of a run, with all that is chosen for it, and the module that trains it."""

from __future__ import annotations

from typing import Any

import torch

from xftrain.commands import builder
from xftrain.commands.description import log_model_and_batch
from xftrain.commands.prepare import Prepared
from xftrain.commands.saved_choices import SavedChoices, choose_kernel
from xftrain.config import registry
from xftrain.config.own_code import own_code
from xftrain.folders.run_folder import RunFolder
from xftrain.memory.plan import plan_memory
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.train.module import TrainingModule
from xftrain.train.nonfinite import NonFiniteGuard
from xftrain.utils import redaction


def build_model(
    run: Prepared, folder: RunFolder, result: dict[str, Any], saved: SavedChoices
) -> GPT:
    """Builds the model: chooses the attention kernel, plans memory and compiles the blocks."""
    cfg, batch, device = run.cfg, run.batch, run.device
    torch.manual_seed(cfg.seed)
    model = builder.assemble(cfg.model, run.vocab_size)
    if run.initial is not None:
        run.initial.load_into(model)
    log_model_and_batch(model, cfg, batch, device, run.precision)
    result["num_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    result["device"] = hardware.device_name(device)
    result["kernel"] = choose_kernel(model, batch, device, run.dtype, saved, folder)
    predicted = plan_memory(cfg, model, run.loss, batch, run.dtype, device)
    result["predicted_peak_mib"] = predicted and round(predicted, 1)
    if cfg.compile:
        torch._dynamo.reset()  # drops the compiled blocks of an earlier run in this process
        model.compile_blocks(packed=batch.seqlens is not None)
    return model


def build_module(run: Prepared, model: GPT) -> TrainingModule:
    """Builds the LightningModule."""
    cfg = run.cfg
    return TrainingModule(
        model,
        run.loss,
        run.data,
        registry.build(cfg.optim),
        registry.build(cfg.schedule),
        seed=cfg.seed,
        saved={
            "config": run.shown,
            "environment": redaction.digests(),
            "own_code": own_code(cfg.to_dict()),
        },
        guard=NonFiniteGuard(
            on_nonfinite=cfg.on_nonfinite, max_skipped_steps=cfg.max_skipped_steps
        ),
        overfit_batches=cfg.trainer.overfit_batches,
    )

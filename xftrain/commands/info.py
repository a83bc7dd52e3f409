"""`--config-name info`: describes a run without training: sizes, FLOPs, memory and kernel."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from xftrain.commands import builder
from xftrain.commands.prepare import Prepared, prepare
from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.saved_choices import SavedChoices, choose_kernel
from xftrain.config.command_configs import InfoConfig
from xftrain.config.compose import validate_as
from xftrain.errors import ConfigError
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.interfaces import Batch
from xftrain.kernels.matmul import Autotuner, autotuner_set
from xftrain.memory.plan import plan_memory
from xftrain.model.flops import flops_per_token, peak_flops
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.utils import redaction
from xftrain.utils.device_memory import total_memory_bytes
from xftrain.utils.markdown import table

log = logging.getLogger(__name__)


def info(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: InfoConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Describes the run and returns the content of `result.json`; `metrics` has the figures.

    Args:
        cfg: what `xftrain.compose(config_name="info")` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Raises:
        ConfigError: the configuration is wrong, or cannot run on this machine.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, InfoConfig.output)
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        checked = checked or validate_as(InfoConfig, cfg)
        if checked.trainer.devices > 1:
            raise ConfigError(
                "--config-name info describes a run on one device, got trainer.devices="
                f"{checked.trainer.devices}: each device has the memory and the FLOPs that "
                "it shows."
            )
        prepared = prepare(checked, redaction.without_secrets(cfg, checked.to_dict()), run_dir)
        result["device"] = hardware.device_name(prepared.device)
        # autotuned matmuls save less memory
        with autotuner_set(Autotuner() if checked.matmul == "auto" else None):
            _describe(prepared, folder, result)
    return result


def _describe(run: Prepared, folder: RunFolder, result: dict[str, Any]) -> None:
    cfg, batch = run.cfg, run.batch
    with torch.device("meta"):  # nothing is allocated
        model = builder.assemble(cfg.model, run.vocab_size)
    kernel = choose_kernel(model, batch, run.device, run.dtype, SavedChoices(), folder)
    peak_mib = plan_memory(cfg, model, run.loss, batch, run.dtype, run.device)
    figures = _sizes(model, batch, cfg.trainer.accumulate_grad_batches)
    figures["flops_per_token"] = flops_per_token(model, batch, (run.device, run.dtype))
    result["kernel"], result["metrics"] = kernel, figures
    result["predicted_peak_mib"] = peak_mib and round(peak_mib, 1)
    per_step = figures["flops_per_token"] * figures["tokens_per_step"]
    rows = [
        ["parameters", f"{figures['parameters']:,}"],
        ["of these, in embedding tables", f"{figures['embedding_parameters']:,}"],
        ["tokens per step", f"{figures['tokens_per_step']:,}"],
        ["tokens of the run", f"{figures['tokens_per_step'] * cfg.max_steps:,}"],
        ["FLOPs per token", f"{figures['flops_per_token']:.4g}"],
        ["FLOPs per step", f"{per_step:.4g}"],
        ["memory at the peak", "unknown" if peak_mib is None else f"{peak_mib:,.0f} MiB"],
        ["memory of the device", f"{total_memory_bytes(run.device) / 2**20:,.0f} MiB"],
        ["precision", run.precision],
        ["attention kernel", kernel],
    ]
    if (peak := peak_flops(run.device, run.dtype)) is not None:
        rows.append(["a step at the device's peak", f"{per_step / peak * 1e3:.3g} ms"])
    log.info("this run would have:\n%s", table(["what", "this run"], rows))


def _sizes(model: GPT, batch: Batch, num_parts: int) -> dict[str, int | float]:
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "embedding_parameters": sum(table.weight.numel() for table in tables),
        "tokens_per_step": batch.num_tokens * num_parts,
    }

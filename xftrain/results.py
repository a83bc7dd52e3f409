"""What a run leaves behind in `result.json`, and its last lines on the console."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from xftrain.errors import ConfigError, RunError

log = logging.getLogger(__name__)

_PACKAGES = ("xftrain", "torch", "xformers", "lightning", "hydra-core", "omegaconf")


def status_after(error: BaseException) -> str:
    """`refused`, `stopped` from outside, or `failed`."""
    if isinstance(error, ConfigError):
        return "refused"
    return "stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"


def empty_result(run_dir: Path) -> dict[str, Any]:
    """The record of a run that has not begun."""
    return {
        "status": "running",
        "error": None,
        "kernel": None,
        "overrides": _overrides(),
        "metrics": {},
        "tokens_per_s": None,
        "peak_memory_mib": None,
        "wall_s": None,
        "steps": 0,
        "run_dir": str(run_dir),
        "versions": _versions(),
        "device": None,
    }


def _overrides() -> list[str]:
    if not HydraConfig.initialized():
        return []
    return [str(override) for override in HydraConfig.get().overrides.task]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["torch"] = torch.__version__  # names the build: +cpu, +cu130
    return versions


def write_result(result: Mapping[str, Any], run_dir: Path) -> None:
    """`result.json`, whole or absent; JSON has no NaN, so such a number becomes null.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    plain = {
        **result,
        "metrics": {name: _json_number(value) for name, value in result["metrics"].items()},
    }
    partial = run_dir / ".result.json.partial"
    try:
        partial.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(run_dir / "result.json")
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise RunError(
            f"{run_dir / 'result.json'} could not be written ({error}): free space on its disk or "
            "choose another hydra.run.dir."
        ) from error


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def say_how_it_went(result: Mapping[str, Any]) -> None:
    """The last lines of a run: figures, folder, and how to look at it."""
    metrics = result["metrics"]
    parts = [f"loss {metrics['val/loss']:.4f}", f"accuracy {metrics['val/accuracy']:.2%}"]
    if "val/bits_per_byte" in metrics:
        parts.append(f"{metrics['val/bits_per_byte']:.3f} bits per byte")
    if "val/bits_per_byte_bigram" in metrics:
        parts.append(f"byte bigram {metrics['val/bits_per_byte_bigram']:.3f}")
    speed = result["tokens_per_s"]
    said = f", {speed:,.0f} tokens/s" if speed else ""
    log.info("done in %.1f s: %d steps%s", result["wall_s"], result["steps"], said)
    log.info("validation: %s", ", ".join(parts))
    log.info("run folder: %s", result["run_dir"])
    folder = Path(result["run_dir"])
    log.info("tensorboard --logdir %s", folder.parts[0] if _is_below(folder) else folder)


def _is_below(folder: Path) -> bool:
    """Whether the first part of a relative path is a folder that holds this one and others."""
    return len(folder.parts) > 1 and not folder.is_absolute()

"""What a configuration is a command for: a training run, or the doctor alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.config import DoctorRoot, root_of


def run(cfg: DictConfig, run_dir: Path | None = None) -> dict[str, Any]:
    """Runs what the configuration describes and returns what `result.json` in its folder holds.

    Args:
        cfg: what `xftrain.compose` returns.
        run_dir: the run's folder; made under `outputs/` where it is not given.

    Raises:
        ConfigError: the configuration is wrong.
        RunError: the run failed for a reason outside the code.
    """
    if root_of(cfg) is DoctorRoot:
        from xftrain.benchmark.examine import examine

        return examine(cfg, run_dir)
    from xftrain.runner import run as train

    return train(cfg, run_dir)

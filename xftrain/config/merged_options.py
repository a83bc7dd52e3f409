"""Refuses a list of options for a group that takes one."""

from __future__ import annotations

from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from xftrain.config.registry import ENTRY_GROUPS, GROUPS
from xftrain.errors import ConfigError


def refuse_merged(hydra_cfg: DictConfig | HydraConf) -> None:
    """Refuses several options for one group, `model.attn=[naive,sdpa]`, which Hydra would merge.

    Args:
        hydra_cfg: the `hydra` node of a composed configuration, while Hydra is initialized.

    Raises:
        ConfigError: a group that takes one option got several, in an override or in a file.
    """
    groups = ("model", "layers", "trainer", *GROUPS)
    single = [group for group in groups if group not in ENTRY_GROUPS]
    if all(group in hydra_cfg.runtime.choices for group in single):
        return  # Hydra records no choice for a group that was given a list
    typed = [*hydra_cfg.overrides.hydra, *hydra_cfg.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(hydra_cfg.job.config_name, typed, RunMode.RUN).defaults
    for group in single:
        chosen = [
            Path(str(item.config_path)).name
            for item in defaults
            if Path(str(item.config_path)).parent.as_posix() == group
            # trainer/cpu includes trainer/auto in its defaults, which is not a second choice
            and Path(str(item.parent)).parent.as_posix() != group
        ]
        if len(chosen) > 1:
            key, listed = group.replace("/", "."), ",".join(chosen)
            raise ConfigError(
                f"{key} takes one option, got [{listed}]; "
                f"to run one job for each, add -m and write {key}={listed}."
            )

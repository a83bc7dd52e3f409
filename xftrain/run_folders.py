"""The folder of a run or a sweep is made when that starts, and only named before.

A configuration is also composed to be printed, which makes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from xftrain.files import new_folder
from xftrain.overrides import literal, path_slug
from xftrain.redaction import hidden

# Resolvers of root_schema.py that only name a folder; the second is for one that is to end with
# what was typed.
_NEW, _NEW_RUN = "${xf.new_folder:", "${xf.new_run_folder:"


class NewFolders(Callback):
    """Makes the folders that the configuration names with `${xf.new_folder:...}`.

    With `${xf.new_run_folder:...}` it ends with what was typed, by which people and TensorBoard
    tell runs apart. Two runs or sweeps may start in the same second: the second one's folder ends
    in `-2`.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra makes the folder of a run, where it may be there already."""
        # as it is written: an interpolation in an override is not for Hydra's part to resolve
        job = OmegaConf.to_container(config.hydra.job, resolve=False)
        assert isinstance(job, dict)
        _make(config, config.hydra.run, path_slug(hidden(str(job["override_dirname"]))))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before anything is written to the folder of a sweep, of which each job is told."""
        if made := _make(config, config.hydra.sweep):
            with flag_override(config, ["readonly", "struct"], False):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={literal(made)}")


def _make(config: DictConfig, node: DictConfig, ending: str = "") -> str | None:
    """Makes the folder and puts its name in the place of the interpolation."""
    written = OmegaConf.to_container(node, resolve=False)
    assert isinstance(written, dict)
    if not str(written["dir"]).startswith((_NEW, _NEW_RUN)):
        return None
    if not str(written["dir"]).startswith(_NEW_RUN):
        ending = ""
    with suppress(OSError):  # which Hydra meets again, and cli reports
        made = str(new_folder(Path(f"{node.dir}{ending}")))
        with flag_override(config, ["readonly", "struct"], False):
            node.dir = made
        return made
    return None

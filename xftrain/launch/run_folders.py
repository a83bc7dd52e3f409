"""Makes the folder of a run or a sweep when it starts.

Composing a configuration only names the folder, since it may merely be printed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from xftrain.config.overrides import literal, path_slug
from xftrain.utils.files import make_new_folder
from xftrain.utils.redaction import hidden_in_message

# Resolvers of root_schema.py that only name a folder; with the second, the name ends with the
# overrides.
_NEW, _NEW_RUN = "${xf.new_folder:", "${xf.new_run_folder:"


class NewFolders(Callback):
    """Makes the folders that the configuration names with `${xf.new_folder:...}`.

    With `${xf.new_run_folder:...}` the name ends with the overrides, which identify a run in
    TensorBoard. If two runs or sweeps start in the same second, the second folder ends in `-2`.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes the folder of a run before Hydra does, which would accept an existing one."""
        # unresolved: an interpolation in an override may not resolve within Hydra's node
        job = OmegaConf.to_container(config.hydra.job, resolve=False)
        assert isinstance(job, dict)
        _make(config, config.hydra.run, path_slug(hidden_in_message(str(job["override_dirname"]))))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes the folder of a sweep before anything is written; each job gets its name."""
        if made := _make(config, config.hydra.sweep):
            with flag_override(config, ["readonly", "struct"], False):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={literal(made)}")


def _make(config: DictConfig, node: DictConfig, ending: str = "") -> str | None:
    """Makes the folder and replaces the interpolation by its name."""
    written = OmegaConf.to_container(node, resolve=False)
    assert isinstance(written, dict)
    if not str(written["dir"]).startswith((_NEW, _NEW_RUN)):
        return None
    if not str(written["dir"]).startswith(_NEW_RUN):
        ending = ""
    with suppress(OSError):  # Hydra gets the same error, and `cli` reports it
        made = str(make_new_folder(Path(f"{node.dir}{ending}")))
        with flag_override(config, ["readonly", "struct"], False):
            node.dir = made
        return made
    return None

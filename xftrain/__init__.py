"""xftrain: train memory-efficient transformers, every choice of them checked and measured.

In notebooks and tests: `cfg = xftrain.compose("model.attn=naive")`, `xftrain.build_model(cfg)`,
`xftrain.run(cfg)`. Importing the package imports no torch; these do, when first used.
"""

import sys

from xftrain.utils.search_path import leave_out_empty_entries, leave_out_working_folder

# before other imports, which could come from the working folder
if getattr(sys, "argv", [])[:1] == ["-m"]:  # Python looks for its module
    leave_out_working_folder()
leave_out_empty_entries()

from importlib import import_module  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from xftrain.version import __version__  # noqa: E402

if TYPE_CHECKING:
    from xftrain.commands.builder import build_model
    from xftrain.config.compose import compose
    from xftrain.launch.dispatch import run

__all__ = ["__version__", "build_model", "compose", "run"]

_HOMES = {
    "build_model": "xftrain.commands.builder",
    "compose": "xftrain.config.compose",
    "run": "xftrain.launch.dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xftrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Normalizes command-line arguments to the form that Hydra parses."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser

from xftrain.config.overrides import (
    all_groups,
    normalize_argv,
    refuse_long_names,
    refuse_non_utf8,
)
from xftrain.config.python_o import refuse_unreadable
from xftrain.errors import ConfigError
from xftrain.multirun import record
from xftrain.utils.yaml_files import refuse_yaml_bombs


def normalized_arguments(argv: list[str]) -> list[str]:
    """Puts flags before overrides, and rewrites dotted group overrides with slashes.

    Raises:
        ConfigError: Hydra cannot parse the arguments, or a file that they name is refused.
    """
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            flags = get_args_parser().parse_intermixed_args(argv)
    except SystemExit as stop:
        if not stop.code:
            raise
        reason = stderr.getvalue().rpartition("error: ")[2].strip()
        raise ConfigError(f"{reason}; --hydra-help lists the flags.") from None
    if flags.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun is refused, since it runs any code that its file holds; "
            "repeat a run with the overrides in its .hydra/overrides.yaml."
        )
    package = Path(__file__).resolve().parent  # to which Hydra resolves a relative --config-path
    config_dirs = [Path(flags.config_dir)] if flags.config_dir else []
    config_dirs += [package / flags.config_path] if flags.config_path else []
    refuse_non_utf8([*argv, os.getcwd()])
    _refuse_interpolations([Path.cwd(), *config_dirs])
    refuse_yaml_bombs(config_dirs)
    first = [arg for arg in argv if arg not in flags.overrides]
    rest = record.resumed(flags.overrides, has_flags=bool(flags.config_name or config_dirs))
    refuse_unreadable(rest)
    groups = all_groups(*config_dirs)
    refuse_long_names([flags.config_name or "", *rest], groups)
    return first + normalize_argv(rest, groups)


def _refuse_interpolations(folders: Sequence[Path]) -> None:
    """Refuses folder names with `${`: Hydra stores them as values and would interpolate them."""
    for folder in folders:
        if "${" in os.path.abspath(folder):
            raise ConfigError(
                f"the folder {str(folder)!r} has ${{ in its name, which is read as an "
                "interpolation: use a folder with another name."
            )

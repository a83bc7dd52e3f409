"""Hides secrets in Hydra's own files in a run folder, which hold resolved values."""

from __future__ import annotations

from pathlib import Path

from xftrain.errors import ConfigError
from xftrain.utils.files import read_plain, replace_text
from xftrain.utils.redaction import hidden

_MAX_BYTES = 16 << 20
_NAMES = ("config.yaml", "hydra.yaml", "overrides.yaml")


def hide_in_files(folder: Path) -> None:
    """Replaces the values of environment variables by their names in Hydra's files of a folder.

    Raises:
        ConfigError: a file cannot be read, so Hydra did not write it.
    """
    for path in (folder / name for name in _NAMES):
        try:
            text = read_plain(path, _MAX_BYTES).decode("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{path} cannot be read ({said}): remove it, or choose another hydra.run.dir."
            ) from error
        if (shown := hidden(text)) != text:
            replace_text(path, shown)

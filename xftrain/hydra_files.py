"""Hydra's own files in a run's folder, which name that folder with every value resolved."""

from __future__ import annotations

from pathlib import Path

from xftrain.errors import ConfigError
from xftrain.files import read_plain, replace_text
from xftrain.redaction import hidden

_MAX_BYTES = 16 << 20
_NAMES = ("config.yaml", "hydra.yaml", "overrides.yaml")


def hide_in_files(folder: Path) -> None:
    """Puts names of variables in place of their values into Hydra's files in a folder.

    Raises:
        ConfigError: one of them cannot be read. Any other file there is none of Hydra's.
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

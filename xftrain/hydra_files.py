"""Hydra's own files in a run's folder, which name that folder with every value resolved."""

from __future__ import annotations

from pathlib import Path

from xftrain.files import read_plain, replace_text
from xftrain.redaction import hidden

_MAX_BYTES = 16 << 20


def hide_in_files(folder: Path) -> None:
    """Puts names of variables in place of their values into the YAML files of a folder."""
    for path in sorted(folder.glob("*.yaml")):
        text = read_plain(path, _MAX_BYTES).decode("utf-8")
        if (shown := hidden(text)) != text:
            replace_text(path, shown)

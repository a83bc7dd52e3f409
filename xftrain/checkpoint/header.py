"""Reads the description of the run in a checkpoint, without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xftrain.checkpoint.file_format import described_content
from xftrain.checkpoint.saved_config import check_description
from xftrain.utils.files import open_plain


def header(path: Path) -> Mapping[str, Any] | None:
    """The checkpoint's own entry, `xftrain`, and its `callbacks`; None if it cannot be read."""
    try:
        with open_plain(path) as file:
            held = described_content(file)
        check_description(held["xftrain"])
        found = {"callbacks": held["callbacks"], **held["xftrain"]}
    except Exception:  # zipfile can raise anything
        return None
    return found


def run_id(path: Path) -> str | None:
    """The id of the run of a checkpoint; None if it has no id."""
    callbacks = (header(path) or {}).get("callbacks")
    state = callbacks.get("RunStart") if isinstance(callbacks, Mapping) else None
    found = state.get("run") if isinstance(state, Mapping) else None
    return found if isinstance(found, str) else None


def later_checkpoints(folder: Path, resumed: Path) -> list[Path]:
    """The checkpoints in a folder that were saved after another one, and their exported weights.

    Args:
        folder: the folder `checkpoints` of a run.
        resumed: the other checkpoint, in this folder or elsewhere.
    """
    saved_at = _saved_at(header(resumed))
    later = [o for o in sorted(folder.glob("*.ckpt")) if _saved_at(header(o)) > saved_at]
    weights = folder / "weights.safetensors"
    return [*later, weights] if later and weights.is_file() else later


def _saved_at(held: Mapping[str, Any] | None) -> float:
    """The time of the save in nanoseconds; 0 if missing or unreadable."""
    found = (held or {}).get("saved_at", 0)
    return float(found) if isinstance(found, int | float) else 0.0

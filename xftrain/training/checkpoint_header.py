"""What a checkpoint says of its run, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xftrain.files import open_plain
from xftrain.training.checkpoint_format import described_content
from xftrain.training.saved_config import check_description


def header(path: Path) -> Mapping[str, Any] | None:
    """The checkpoint's own entry, `xftrain`, and its `callbacks`; None where it cannot be read."""
    try:
        with open_plain(path) as file:
            held = described_content(file)
        check_description(held["xftrain"])
        found = {"callbacks": held["callbacks"], **held["xftrain"]}
    except Exception:  # zipfile can raise anything
        return None
    return found


def run_id(path: Path) -> str | None:
    """Which run the checkpoint is of; None where it does not say."""
    callbacks = (header(path) or {}).get("callbacks")
    state = callbacks.get("RunStart") if isinstance(callbacks, Mapping) else None
    found = state.get("run") if isinstance(state, Mapping) else None
    return found if isinstance(found, str) else None


def later_checkpoints(folder: Path, resumed: Path) -> list[Path]:
    """The checkpoints of a folder that were saved after another one, and the weights made of them.

    Args:
        folder: `checkpoints` of a run.
        resumed: the other one, there or elsewhere.
    """
    saved_at = _saved_at(header(resumed))
    later = [o for o in sorted(folder.glob("*.ckpt")) if _saved_at(header(o)) > saved_at]
    weights = folder / "weights.safetensors"
    return [*later, weights] if later and weights.is_file() else later


def _saved_at(held: Mapping[str, Any] | None) -> float:
    """Zero where it does not say, or cannot be read."""
    found = (held or {}).get("saved_at", 0)
    return float(found) if isinstance(found, int | float) else 0.0

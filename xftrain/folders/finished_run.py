"""Reads the record that a finished run leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from xftrain.utils.files import read_json


def status_of(run_dir: Path) -> str | None:
    """The status in the folder's `result.json`; None if it records none."""
    status = (read_json(run_dir / "result.json") or {}).get("status")
    return status if isinstance(status, str) else None

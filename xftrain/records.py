"""What a run that has ended says of itself in its folder."""

from __future__ import annotations

from pathlib import Path

from xftrain.files import read_json


def of_ended_run(run_dir: Path) -> dict[Path, bytes]:
    """The files, with their content; none where no run was completed or stopped in the folder.

    Another one that is refused there, as one that goes on with another model, leaves them.
    """
    result = read_json(run_dir / "result.json")
    if result is None or result.get("status") not in ("completed", "stopped"):
        return {}
    files = (run_dir / name for name in ("result.json", "config.yaml"))
    return {file: file.read_bytes() for file in files if file.is_file()}

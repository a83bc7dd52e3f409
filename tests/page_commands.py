"""Commands of the pages that train, as they stand, but for fewer and smaller steps."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import forked
from tests.pages import ROOT
from xftrain.multirun import record


def printed_by(command: str, folder: Path, *more: str, path: Path = ROOT) -> str:
    """What the command prints."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "xftrain"], command
    small = [] if record.RESUME_KEY in command else ["batch_tokens=128", "max_steps=3"]
    words = [*words[3:], *small, *filter(None, more)]
    env = {**os.environ, "PYTHONPATH": str(path)}
    if path == ROOT:
        process = forked.ended(forked.main, words, cwd=folder, env=env)
    else:  # another package, which the server of forked processes has not imported
        command_line = [sys.executable, "-m", "xftrain", *words]
        process = subprocess.run(command_line, cwd=folder, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def kernel_in(output: str) -> str:
    found = re.search(r"attention kernel: (.*)", output)
    assert found is not None
    return found[1]


def result_in(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "completed"
    return result


def without_figures(line: str) -> str:
    """A line of the log without its figures."""
    return re.sub(r"outputs/\S+|[\d.,:]*\d", "#", line)

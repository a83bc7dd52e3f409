"""A sweep of real jobs, of which one raises, one exits hard and one is killed."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCHERS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "submitit",
}
ENDS = ("fine", "raise", "also", "exit", "well", "kill", "good", "last")
BAD = """
import os
import signal

from lightning.pytorch import Callback


class Ends(Callback):
    def __init__(self, how):
        self.how = how

    def on_train_start(self, trainer, pl_module):
        if os.path.exists("mended"):
            return
        if self.how == "raise":
            raise ValueError("on purpose")
        if self.how == "exit":
            os._exit(9)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
"""


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_eight_jobs_three_of_which_end_badly(tmp_path: Path, launcher: str) -> None:
    if not _installed(LAUNCHERS[launcher]):
        pytest.skip(f"the launcher {launcher} is an extra that is not installed")
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "own" / "callbacks").mkdir(parents=True)
    (tmp_path / "own" / "callbacks" / "ends.yaml").write_text(
        "ends:\n  _target_: bad.Ends\n  how: fine\n"
    )

    path = [str(ROOT), str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "xftrain", "--config-dir", "own", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=280,
        )

    def rows() -> list[dict[str, str]]:
        with (tmp_path / "sweep" / "summary.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    small = ["callbacks=ends", "batch_tokens=128", "max_steps=1", "model.num_layers=1"]
    small += ["model.attn=naive", "logger=none"]
    chosen = [] if launcher == "basic" else [f"hydra/launcher={launcher}"]
    sweep = f"callbacks.ends.how={','.join(ENDS)}"
    ended = command("-m", sweep, *small, *chosen, "hydra.sweep.dir=sweep")

    assert ended.returncode == 1, ended.stderr
    found = {row["callbacks.ends.how"]: row for row in rows()}
    assert list(found) == list(ENDS)
    bad = {"raise": "failed", "exit": "crashed", "kill": "crashed"}
    assert {how: row["status"] for how, row in found.items()} == {
        how: bad.get(how, "completed") for how in ENDS
    }
    assert "ValueError: on purpose" in found["raise"]["error"]
    assert "code 9" in found["exit"]["error"] and "SIGKILL" in found["kill"]["error"]
    assert all(float(row["val/loss"]) > 0 for how, row in found.items() if how not in bad)
    assert "3 of 8 jobs failed" in ended.stderr and "| job | status" in ended.stdout

    (tmp_path / "mended").touch()
    kept = {how: Path(row["run_dir"], "result.json").stat().st_mtime for how, row in found.items()}
    again = command("-m", sweep, *small, *chosen, "resume_sweep=sweep")

    assert again.returncode == 0, again.stderr
    assert [row["status"] for row in rows()] == ["completed"] * 8
    changed = {
        row["callbacks.ends.how"]
        for row in rows()
        if Path(row["run_dir"], "result.json").stat().st_mtime != kept[row["callbacks.ends.how"]]
    }
    assert changed == set(bad)

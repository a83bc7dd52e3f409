"""A sweep of jobs of which one raises, one exits hard and one is killed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.command_line import Ended
from tests.tensorboards import are_last_metrics, hparams_tab, steps_of

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("basic", "joblib", "submitit_local")
ENDS = ("raise", "exit", "kill", "good")
BAD = {"raise": "failed", "exit": "crashed", "kill": "crashed"}
FILES = {
    "own/callbacks/ends.yaml": "ends:\n  _target_: callback.Ends\n  how: good\n",
    "ends.py": """
import os
import signal


def end(how):
    if os.path.exists("mended"):
        return
    if how == "raise":
        raise ValueError("on purpose")
    if how == "exit":
        os._exit(9)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
""",
    "callback.py": """
from ends import end
from lightning.pytorch import Callback


class Ends(Callback):
    def __init__(self, how):
        self.how = how

    def on_train_start(self, trainer, pl_module):
        end(self.how)
""",
}
# In place of training, which takes 3 s to start: what a launcher changes comes before that.
STAND_IN = """
import json
import sys
import types

from ends import end


def run(cfg, run_dir, checked, reserved):
    from xftrain.config.overrides import override_strings
    from hydra.core.hydra_config import HydraConfig

    overrides = override_strings(HydraConfig.get().overrides.task)
    result = {"status": "completed", "error": None, "overrides": overrides}
    result["metrics"] = {"val/loss": 1.0}
    try:
        end(cfg.callbacks.ends.how)
    except ValueError as error:
        result |= {"status": "failed", "error": f"ValueError: {error}"}
        raise
    finally:
        (run_dir / "result.json").write_text(json.dumps(result))


sys.modules["xftrain.commands.train"] = types.ModuleType("xftrain.commands.train")
sys.modules["xftrain.commands.train"].run = run
"""


@pytest.fixture
def no_modules_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes modules of the working folder that a sweep imported, after each test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("callback", "ends"):
        sys.modules.pop(name, None)


def _in_a_process(folder: Path, *arguments: str) -> Ended:
    path = [str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = subprocess.run(
        [sys.executable, "-m", "xftrain", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.slow
@pytest.mark.usefixtures("no_modules_left")
@pytest.mark.parametrize(
    "launcher",
    [pytest.param(n, marks=[] if n == "basic" else pytest.mark.long) for n in LAUNCHERS],
)
def test_a_sweep_goes_on_whatever_ends_a_job(
    tmp_path: Path, launcher: str, request: pytest.FixtureRequest
) -> None:
    is_basic = launcher == "basic"  # it trains
    if is_basic:
        request.getfixturevalue("forked_jobs")
        run = request.getfixturevalue("command")
    else:
        run = partial(_in_a_process, tmp_path)
    command = partial(run, "--config-dir", "own")
    ends = ENDS if is_basic else ("kill", "good")  # each job of another launcher starts Python
    bad = {how: status for how, status in BAD.items() if how in ends}
    files = FILES if is_basic else {**FILES, "sitecustomize.py": STAND_IN}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def rows() -> list[dict[str, str]]:
        with (tmp_path / "sweep" / "summary.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    small = [
        "callbacks=[ends,metrics]",
        "seq=16",
        "batch_tokens=64",
        "max_steps=2",
        "model.attn=naive",
    ]
    small += ["model.dim=16", "model.num_layers=1", "model.num_heads=2", "logger=tensorboard"]
    small += ["seed=${hydra:job.num}", f"hydra/launcher={launcher}"]  # no two results alike
    small += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []  # not all at once
    sweep = f"callbacks.ends.how={','.join(ends)}"
    ended = command("-m", sweep, *small, "hydra.sweep.dir=sweep")

    assert ended.code == 1, ended.err
    found = {row["callbacks.ends.how"]: row for row in rows()}
    assert sorted(found, key=lambda how: int(found[how]["job"])) == list(ends)
    assert {how: row["status"] for how, row in found.items()} == {
        how: bad.get(how, "completed") for how in ends
    }
    assert "SIGKILL" in found["kill"]["error"]
    if is_basic:
        assert "ValueError: on purpose" in found["raise"]["error"]
        assert "code 9" in found["exit"]["error"]
    assert all(float(row["val/loss"]) > 0 for how, row in found.items() if how not in bad)
    assert f"{len(bad)} of {len(ends)} jobs failed" in ended.err and "| job | status" in ended.out

    if not is_basic:  # resuming does not know the launcher
        return
    (tmp_path / "mended").touch()
    results = {how: tmp_path / "sweep" / found[how]["run_dir"] / "result.json" for how in ends}
    kept = {how: result.stat().st_mtime_ns for how, result in results.items()}
    again = command("-m", sweep, *small, "resume_sweep=sweep")

    assert again.code == 0, again.err
    assert [row["status"] for row in rows()] == ["completed"] * len(ends)
    assert {how for how in ends if results[how].stat().st_mtime_ns != kept[how]} == set(bad)
    if is_basic:
        _check_tensorboard(tmp_path / "sweep", list(results.values()))


def _check_tensorboard(sweep: Path, results: list[Path]) -> None:
    """All jobs are in the HParams tab with their last metrics, and no point was made up."""
    shown = hparams_tab(sweep, ["seed"], num_runs=len(results))
    assert set(shown) == {result.parent.name for result in results}
    for job, result in enumerate(results):
        hparams, values = shown[result.parent.name]
        assert hparams["seed"] == job
        are_last_metrics(values, json.loads(result.read_text())["metrics"])
        steps = steps_of(result.parent)
        assert {step for at in steps.values() for step in at} == {2}, steps
    assert len({values["val/loss"] for _, values in shown.values()}) == len(results)

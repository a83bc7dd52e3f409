"""A signal that ends a sweep reaches its job as the same signal."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.errors import Stopped
from xftrain.multirun import jobs as sweeps
from xftrain.utils.processes import Process, end_processes

Command = Callable[..., Ended]
# A job that says in its result which signal it got, as a run does.
_JOB = """
for name in TERM HUP XCPU USR1; do
  result='{"status": "stopped", "overrides": [], "error": "stopped by SIG'$name'"}'
  trap "echo '$result' > $0; exit 1" $name
done
echo ready
while :; do sleep 0.02; done
"""


def _job(result: Path) -> Process:
    process = subprocess.Popen(["sh", "-c", _JOB, str(result)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1])
def test_a_job_gets_the_signal_of_its_sweep(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A sweep that was hung up had a job that was stopped by SIGTERM in its table."""

    def start(arguments: list[str], cwd: str, last_words: Path) -> Process:
        process = _job(last_words.with_name("result.json"))

        def stopped(self: object = None, timeout: float | None = None) -> int:
            monkeypatch.setattr(process, "wait", wait)
            raise Stopped(number)

        wait = process.wait
        monkeypatch.setattr(process, "wait", stopped)
        return process

    monkeypatch.setattr(sweeps, "start", start)
    one_sentence(command("-m", "seq=8,16", "hydra.sweep.dir=s"), Stopped(number).code)
    (result,) = tmp_path.glob("s/*/result.json")
    assert json.loads(result.read_text())["error"] == f"stopped by {number.name}"
    assert f"stopped by {number.name}" in (tmp_path / "s" / "summary.csv").read_text()


def test_a_process_that_does_not_end_is_killed() -> None:
    command = "trap '' TERM HUP; echo ready; while :; do sleep 0.02; done"
    process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.stdout.close()
    end_processes([process], patience_s=0.0, wait_s=0.2, number=signal.SIGHUP)
    assert process.returncode == -signal.SIGKILL

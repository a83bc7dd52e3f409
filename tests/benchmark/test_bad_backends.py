"""Whatever a backend does to its process is a row, and costs no other cell anything."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from xftrain import compose, run

BAD = '''
import os
import signal
import time

import torch

from xftrain.model.attn.naive import Naive


class Raises(Naive):
    def __call__(self, q, k, v, handle):
        raise ValueError("on purpose")


class OutOfMemory(Naive):
    def __call__(self, q, k, v, handle):
        return torch.ones(10**14)


class Hangs(Naive):
    def __call__(self, q, k, v, handle):
        time.sleep(600)


class Crashes(Naive):
    def __call__(self, q, k, v, handle):
        os.kill(os.getpid(), signal.SIGSEGV)


class CrashesWhenTimed(Naive):
    """A backend that fails only while the cells are timed in turns."""

    calls = 0

    def __call__(self, q, k, v, handle):
        CrashesWhenTimed.calls += 1
        if CrashesWhenTimed.calls > 6:
            os._exit(3)
        return super().__call__(q, k, v, handle)


class Refuses(Naive):
    def reasons(self, call, *, needs_grad=True):
        return ["it is a Monday", "it rains"]
'''
ENDS = {
    "naive": ("ok", None),
    "Raises": ("failed", "ValueError: on purpose"),
    "OutOfMemory": ("oom", "allocate"),
    "Hangs": ("timeout", "no end after 6 s"),
    "Crashes": ("crashed", "SIGSEGV"),
    "CrashesWhenTimed": ("crashed", "code 3"),
    "Refuses": ("unsupported", "it is a Monday; it rains"),
    "sdpa": ("ok", None),
}


@pytest.mark.long
@pytest.mark.usefixtures("forked_workers")
def test_each_end_is_a_row_and_the_report_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    nodes = [name if name.islower() else f"{{_target_: bad.{name}}}" for name in ENDS]
    cfg = compose(
        "callbacks=attention_sweep",
        f"callbacks.attention_sweep.backends=[{','.join(nodes)}]",
        "callbacks.attention_sweep.lengths=[32]",
        "callbacks.attention_sweep.biases=[causal]",
        "callbacks.attention_sweep.timeout_s=6",
        "model.attn=naive",
        "batch_tokens=128",
        "max_steps=1",
    )
    result = run(cfg, tmp_path / "run")

    rows = _rows(tmp_path / "run")
    found = {row["backend"]: (row["status"], row["reason"]) for row in rows}
    assert result["status"] == "completed"
    assert list(ENDS) == [row for row in ENDS if row in found] and len(rows) == len(ENDS)
    for name, (status, reason) in ENDS.items():
        assert found[name][0] == status, found[name]
        assert (reason or "") in (found[name][1] or ""), found[name]
    report = (tmp_path / "run" / "report.md").read_text()
    assert all(f"| {name} " in report for name in ENDS)
    assert "it is a Monday; it rains" in report
    with (tmp_path / "run" / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(ENDS) + 1  # and the matrix product
    assert "on purpose" in (tmp_path / "run" / "worker.log").read_text()


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    return [row for row in rows if row["sweep"] != "peak"]

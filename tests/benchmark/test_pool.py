"""Processes that die where no cell is to blame, and those that cannot start."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from xftrain.benchmark import pool as pool_module
from xftrain.benchmark.cells import Cell
from xftrain.benchmark.pool import Pool
from xftrain.benchmark.worker import Job, Reporter

pytestmark = pytest.mark.slow


def measure(cells: Sequence[Cell], reporter: Reporter) -> None:
    for index, cell in enumerate(cells):
        reporter.start_cell(index)
        what = cell.columns["what"]
        if what == "raise":
            reporter.attempt(index, int, "no number")
        elif what == "die":
            reporter.heartbeat(index, found=7)
            os.kill(os.getpid(), signal.SIGSEGV)
        else:
            reporter.row(index, "ok", pid=os.getpid(), searches_garbage=gc.isenabled())


def measure_with_a_lock(cells: Sequence[Cell], reporter: Reporter) -> None:
    lock = multiprocessing.RLock()  # as tqdm makes one; its name is what would be left
    reporter.row(0, "ok", semaphore=lock._semlock.name)  # type: ignore[attr-defined]


def _job(*what: str) -> Job:
    return Job(measure, tuple(Cell("s", {"what": word, "n": n}) for n, word in enumerate(what)))


def test_a_process_that_is_killed_leaves_no_semaphore(tmp_path: Path) -> None:
    # a benchmark on a GPU ended with the warning that 12 were leaked, one of each process
    job = Job(measure_with_a_lock, (Cell("s", {"what": "lock"}),))
    with Pool(tmp_path / "worker.log") as pool:
        ((_, row),) = pool.run([job], timeout_s=60)
    assert row["status"] == "ok" and row["semaphore"] is None


@pytest.mark.usefixtures("forked_workers")
def test_processes_outlive_sweeps_and_are_replaced_where_they_die(tmp_path: Path) -> None:
    with Pool(tmp_path / "worker.log") as pool:
        first = [row for _, row in pool.run([_job("fine")], timeout_s=60)]
        again = [row for _, row in pool.run([_job("fine")], timeout_s=60)]
        assert first[0]["pid"] == again[0]["pid"]
        assert first[0]["searches_garbage"] and again[0]["searches_garbage"]

        os.kill(first[0]["pid"], signal.SIGKILL)  # while it has nothing to do
        time.sleep(0.5)
        after = [row for _, row in pool.run([_job("fine", "fine")], timeout_s=60)]
        assert [row["status"] for row in after] == ["ok", "ok"]
        assert after[0]["pid"] != first[0]["pid"]

        rows = {c.columns["what"]: r for c, r in pool.run([_job("raise", "die")], timeout_s=60)}
    assert rows["raise"]["status"] == "failed"
    died = rows["die"]
    assert died["status"] == "crashed" and died["found"] == 7
    # the stack of this cell, not what an earlier one printed
    assert "SIGSEGV" in died["reason"] and "measure" in died["reason"]
    assert "no number" not in died["reason"]
    assert "no number" in (tmp_path / "worker.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker.log"]


def _end_at_once(*arguments: object) -> None:
    raise SystemExit("no such library")


@pytest.mark.usefixtures("forked_workers")
def test_a_process_that_cannot_start_is_tried_again_and_then_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "serve", _end_at_once)
    with Pool(tmp_path / "worker.log") as pool:
        rows = [row for _, row in pool.run([_job("fine", "fine")], timeout_s=60)]
        assert pool._num_started == 3
    assert [row["status"] for row in rows] == ["crashed", "crashed"]
    assert "ended with code 1" in rows[0]["reason"]

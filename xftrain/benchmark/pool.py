"""Runs jobs in processes of their own, and turns whatever happens to one into rows."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

from xftrain.benchmark.cells import Cell, Row
from xftrain.benchmark.worker import Job, Message, serve

_START_S = 300.0  # imports on a slow disk
_LOG_TAIL = 400  # characters of the log that go into the reason of a crash


class _Child:
    """One process, the job that it has, and what is left of that."""

    def __init__(self, log_file: Path, deterministic: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.log_file = log_file
        self._log_start = log_file.stat().st_size if log_file.is_file() else 0
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, str(log_file), deterministic), daemon=True
        )
        self.process.start()
        theirs.close()
        self.is_ready = False
        self.job: Job | None = None
        self.open: set[int] = set()  # cells without a row
        self.current: int | None = None
        self.deadline = time.monotonic() + _START_S

    def give(self, job: Job, timeout_s: float) -> None:
        self.job, self.open, self.current = job, set(range(len(job.cells))), None
        self.deadline = time.monotonic() + timeout_s
        self.connection.send(job)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def cause_of_death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            said = f"the process was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                said += ", as the system does where memory runs out"
        else:
            said = f"the process ended with code {code}"
        with self.log_file.open(errors="replace") as log:
            log.seek(self._log_start)
            tail = " ".join(log.read()[-_LOG_TAIL:].split())
        return f"{said}: {tail}" if tail else said


class Pool:
    """Processes that stay between the sweeps of a run, since starting one takes seconds.

    Args:
        log_file: gets what the processes print.
        deterministic: as in the run.
    """

    def __init__(self, log_file: Path, *, deterministic: bool = False) -> None:
        self._log_file, self._deterministic = log_file, deterministic
        self._children: list[_Child] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._children:
            child.end()
        self._children.clear()
        if self._log_file.is_file() and not self._log_file.stat().st_size:
            self._log_file.unlink()

    def run(
        self,
        jobs: Iterable[Job],
        *,
        timeout_s: float,
        num_workers: int = 1,
        on_begin: Callable[[Cell], None] = lambda cell: None,
    ) -> Iterator[tuple[Cell, Row]]:
        """Each cell of each job with its row: `status`, `reason`, and what was measured.

        Args:
            jobs: in this order, each by one process.
            timeout_s: longest time without a sign of life from a cell.
            num_workers: processes at the same time; more than one where nothing is timed.
            on_begin: called when a cell is taken up.
        """
        waiting = deque(job for job in jobs if job.cells)
        while len(self._children) > num_workers:  # an idle one, too, keeps memory of the device
            self._children.pop().end()
        while True:
            self._assign(waiting, num_workers, timeout_s)
            working = [child for child in self._children if child.job or not child.is_ready]
            if not waiting and not any(child.job for child in working):
                return
            soonest = min(child.deadline for child in working)
            connections = [child.connection for child in working]
            awake = wait(connections, max(0.0, soonest - time.monotonic()))
            for child in working:
                row: Row
                if child.connection in awake:
                    if (message := _receive(child)) is not None:
                        yield from _heed(child, message, timeout_s, on_begin)
                        continue
                    row = {"status": "crashed", "reason": child.cause_of_death()}
                elif time.monotonic() > child.deadline:
                    row = {"status": "timeout", "reason": f"no end after {timeout_s:g} s"}
                else:
                    continue
                self._children.remove(child)
                child.end()
                yield from _bury(child, row, waiting)

    def _assign(self, waiting: deque[Job], num_workers: int, timeout_s: float) -> None:
        """Gives jobs to idle processes, and starts as many as there is work for."""
        for child in self._children:
            if waiting and child.is_ready and child.job is None:
                child.give(waiting.popleft(), timeout_s)
        num_starting = sum(not child.is_ready for child in self._children)
        missing = min(num_workers - len(self._children), len(waiting) - num_starting)
        for _ in range(missing):
            self._children.append(_Child(self._log_file, self._deterministic))


def _bury(child: _Child, row: Row, waiting: deque[Job]) -> Iterator[tuple[Cell, Row]]:
    """The row of the cell that ended the process; its other cells go to the next one."""
    if child.job is None:  # it died while it started, as the next would: a job gets all its rows
        if waiting:
            yield from ((cell, row) for cell in waiting.popleft().cells)
        return
    left = {index: child.job.cells[index] for index in sorted(child.open)}
    gave_up = child.current is None and len(left) < len(child.job.cells)
    if not gave_up:  # a device that had failed, after the row that says so
        yield left.pop(min(left) if child.current is None else child.current), row
    if left:
        waiting.appendleft(Job(child.job.measure, tuple(left.values())))


def _receive(child: _Child) -> Message | None:
    """What the process says; None where it is dead."""
    try:
        message: Message = child.connection.recv()
    except (EOFError, OSError):
        return None
    return message


def _heed(
    child: _Child, message: Message, timeout_s: float, on_begin: Callable[[Cell], None]
) -> Iterator[tuple[Cell, Row]]:
    kind, index, fields = message
    child.deadline = time.monotonic() + timeout_s
    if kind == "ready":
        child.is_ready = True
    elif kind == "done":
        assert not child.open, f"{child.job} made no row for the cells {child.open}"
        child.job, child.current = None, None
    elif kind == "begin":
        assert child.job is not None
        if child.current != index:
            on_begin(child.job.cells[index])
        child.current = index
    else:
        assert child.job is not None
        child.open.discard(index)
        child.current = None
        yield child.job.cells[index], fields

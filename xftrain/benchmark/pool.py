"""Runs jobs in worker processes, and turns crashes and timeouts into rows."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from xftrain.benchmark.cells import Cell, Row
from xftrain.benchmark.worker import Job, Message, serve
from xftrain.utils.files import open_plain, read_text
from xftrain.utils.processes import describe_exit
from xftrain.utils.redaction import hidden_in_message, hidden_throughout
from xftrain.utils.search_path import pass_on_to_processes
from xftrain.utils.untrusted_folder import protected_from_working_folder

_START_S = 300.0  # time to start a process, with imports from a slow disk
_MAX_STARTS = 3  # attempts to start a process before a job is given up
_MAX_REASON = 500  # characters of a cell's error that are kept
_LOG_TAIL = 400  # characters of the log that are part of the reason of a crash


class _Child:
    """A worker process, its job, and the cells of the job that have no row yet."""

    def __init__(self, log_file: Path, device: str, deterministic: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._log_file = log_file
        self._log_start = 0  # where the log of the current cell begins
        self.connection, child_connection = context.Pipe()
        self.process = context.Process(
            target=serve, args=(child_connection, str(log_file), device, deterministic), daemon=True
        )
        pass_on_to_processes()
        try:
            with protected_from_working_folder():
                self.process.start()
        except BaseException:  # such as Stopped after SIGTERM: no other code would end the process
            if self.process.pid is not None:
                self.process.kill()
            raise
        child_connection.close()
        self.is_ready = False
        self.job: Job | None = None
        self.unreported: set[int] = set()  # indices of cells without a row
        self.current: int | None = None
        self.partial_row: Row = {}  # known fields of the current cell
        self.deadline = time.monotonic() + _START_S

    def send(self, job: Job, timeout_s: float) -> bool:
        """Sends a job to the process; returns False if the process is dead."""
        try:
            self.connection.send(job)
        except OSError:
            return False
        self.job, self.unreported, self.current = job, set(range(len(job.cells))), None
        self.deadline = time.monotonic() + timeout_s
        return True

    def start_cell(self, index: int, log_bytes: int) -> None:
        """Marks a cell as the current one, to which a crash or a timeout is attributed."""
        if self.current != index:
            self.partial_row = {}
        self.current, self._log_start = index, log_bytes

    def end(self) -> str:
        """Kills the process and returns its output, for the common log."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        text = hidden_in_message(read_text(self._log_file))
        self._log_file.unlink(missing_ok=True)
        return text

    def cause_of_death(self) -> str:
        """Describes how the process ended, with its last output for the current cell."""
        self.process.join(5)
        cause = describe_exit(self.process.exitcode)
        tail = ""
        with suppress(OSError), open_plain(self._log_file) as log:
            log.seek(self._log_start)
            tail = _crash_output(hidden_in_message(log.read().decode("utf-8", "replace")))
        return hidden_in_message(f"{cause}: {tail}" if tail else cause)


class Pool:
    """Worker processes that all benchmarks of a run reuse, since starting one takes seconds.

    Args:
        log_file: the file for the output of the processes.
        device: `cuda` or `cpu`.
        deterministic: whether the run is deterministic.
    """

    def __init__(self, log_file: Path, *, device: str = "cpu", deterministic: bool = False) -> None:
        self._log_file, self._device, self._deterministic = log_file, device, deterministic
        self._children: list[_Child] = []
        self._num_started = self._num_failed = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for child in list(self._children):
            self._end(child)

    def run(
        self,
        jobs: Iterable[Job],
        *,
        timeout_s: float,
        num_workers: int = 1,
        on_start: Callable[[Cell], None] = lambda cell: None,
    ) -> Iterator[tuple[Cell, Row]]:
        """Runs jobs and yields each cell with its row: `status`, `reason` and the measurements.

        Args:
            jobs: the jobs, which are started in this order, each in one process.
            timeout_s: maximum time without a message from a cell, in seconds.
            num_workers: number of parallel processes; must be 1 if anything is timed.
            on_start: called when a cell begins.
        """
        waiting = deque(job for job in jobs if job.cells)
        while len(self._children) > num_workers:  # idle processes hold device memory, too
            self._end(self._children[-1])
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
                        self._num_failed *= not child.is_ready
                        yield from _handle_message(child, message, timeout_s, on_start)
                        continue
                    row = {"status": "crashed", "reason": child.cause_of_death()}
                elif time.monotonic() > child.deadline:
                    limit_s = timeout_s if child.is_ready else _START_S
                    row = {"status": "timeout", "reason": f"no end after {limit_s:g} s"}
                else:
                    continue
                self._end(child)
                yield from self._handle_death(child, row, waiting)

    def _assign(self, waiting: deque[Job], num_workers: int, timeout_s: float) -> None:
        """Assigns jobs to idle processes, and starts as many processes as there are jobs."""
        for child in list(self._children):
            if child.is_ready and child.job is None and waiting:
                if child.send(waiting[0], timeout_s):
                    waiting.popleft()
                else:  # it died while it was idle
                    self._end(child)
        num_starting = sum(not child.is_ready for child in self._children)
        missing = min(num_workers - len(self._children), len(waiting) - num_starting)
        for _ in range(missing):
            self._num_started += 1
            own_log = self._log_file.with_suffix(f".{self._num_started}.log")
            self._children.append(_Child(own_log, self._device, self._deterministic))

    def _handle_death(
        self, child: _Child, row: Row, waiting: deque[Job]
    ) -> Iterator[tuple[Cell, Row]]:
        """Yields the row of the cell that ended the process, and requeues the job's other cells."""
        if child.job is None:
            self._num_failed += not child.is_ready
            # it died at startup; give up after several attempts
            if waiting and self._num_failed >= _MAX_STARTS:
                yield from ((cell, row) for cell in waiting.popleft().cells)
            return
        left = {index: child.job.cells[index] for index in sorted(child.unreported)}
        gave_up = child.current is None and len(left) < len(child.job.cells)
        if not gave_up:  # otherwise the device failed, and a row has reported it
            index = min(left) if child.current is None else child.current
            yield left.pop(index), child.partial_row | row
        if left:
            waiting.appendleft(Job(child.job.measure, tuple(left.values())))

    def _end(self, child: _Child) -> None:
        self._children.remove(child)
        if text := child.end():
            with open_plain(self._log_file, "ab") as log:
                log.write(text.encode("utf-8"))


def _crash_output(text: str) -> str:
    """The relevant output of a crash: faulthandler prints the last call first, a traceback last."""
    _, fatal, stack = text.rpartition("Fatal Python error: ")
    kept = (fatal + stack)[:_LOG_TAIL] if fatal else text[-_LOG_TAIL:]
    return " ".join(kept.split())


def _sanitized(fields: Row) -> Row:
    """Hides secrets in a row before it is shortened, since a truncated secret is not recognized."""
    row: Row = hidden_throughout(fields)
    return row | {"reason": row["reason"][:_MAX_REASON]} if row.get("reason") else row


def _receive(child: _Child) -> Message | None:
    """Receives a message from the process; None if the process is dead."""
    try:
        message: Message = child.connection.recv()
    except (EOFError, OSError):
        return None
    return message


def _handle_message(
    child: _Child, message: Message, timeout_s: float, on_start: Callable[[Cell], None]
) -> Iterator[tuple[Cell, Row]]:
    kind, index, fields = message
    child.deadline = time.monotonic() + timeout_s
    if kind == "ready":
        child.is_ready = True
    elif kind == "done":
        assert child.job is not None
        # the function of a user's own benchmark may report no row for a cell
        for missing in sorted(child.unreported):
            row: Row = {
                "status": "failed",
                "reason": "the benchmark's function reported no row for it",
            }
            yield child.job.cells[missing], row
        child.job, child.current, child.unreported = None, None, set()
    elif kind == "begin":
        assert child.job is not None
        if child.current != index:
            on_start(child.job.cells[index])
        child.start_cell(index, fields["log_bytes"])
    elif kind == "note":
        child.partial_row = fields
    else:
        assert child.job is not None
        child.unreported.discard(index)
        child.current, child.partial_row = None, {}
        yield child.job.cells[index], _sanitized(fields)

"""The process that measures: a cell that dies there takes nothing else along."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from xftrain import plot_settings
from xftrain.benchmark.cells import Cell, Status
from xftrain.errors import ConfigError
from xftrain.files import open_plain
from xftrain.memory import is_out_of_memory
from xftrain.processes import die_with_parent

T = TypeVar("T")
# ready, begin, note, row or done; the index of the cell; fields
Message = tuple[str, int, dict[str, Any]]


class Unsupported(Exception):
    """A cell that is refused, with the reasons."""


class _Poisoned(Exception):
    """The device raised an error after which this process cannot use it."""


@dataclass(frozen=True)
class Job:
    """Cells that one process measures together, in turns.

    Attributes:
        measure: reports a row for each cell; a function of a module, since it travels by name.
        cells: what to measure.
    """

    measure: Callable[[Sequence[Any], Reporter], None]
    cells: tuple[Cell, ...]


class Reporter:
    """Tells the parent process which cell is under way, and what came of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, index: int) -> None:
        """From here on, what happens to this process is laid to that cell."""
        sys.stdout.flush()
        # what the log has by now is not of this cell
        self._send("begin", index, {"log_bytes": os.fstat(1).st_size})

    def note(self, index: int, **fields: Any) -> None:
        """A sign of life, and fields for the row should this process end before it has one."""
        self._send("note", index, fields)

    def row(self, index: int, status: Status, reason: str | None = None, **fields: Any) -> None:
        """The cell's row."""
        self._send("row", index, {"status": status, "reason": reason, **fields})

    def attempt(self, index: int, function: Callable[..., T], *args: Any) -> T | None:
        """The function's result; None where it raised, which is then the cell's row."""
        self.begin(index)
        try:
            return function(*args)
        except Exception as error:
            status, reason = outcome(error)
            if status == "failed":
                traceback.print_exc()  # to the log of this process
            self.row(index, status, reason)
            if "CUDA error" in reason:
                raise _Poisoned from None
        free_memory()
        return None

    def _send(self, kind: str, index: int, fields: dict[str, Any]) -> None:
        self._connection.send((kind, index, fields))


def outcome(error: Exception) -> tuple[Status, str]:
    """What an exception says about a cell."""
    said = " ".join(str(error).split())
    if isinstance(error, Unsupported | ConfigError):
        return "unsupported", said
    if is_out_of_memory(error):
        return "oom", said.partition(". GPU 0 has")[0] or "out of memory"
    return "failed", f"{type(error).__name__}: {said}"


def free_memory() -> None:
    """Gives back what is no longer used, so that the next cell finds it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def serve(connection: Connection, log_file: str, device: str, deterministic: bool) -> None:
    """Measures one job after the other until the parent hangs up."""
    plot_settings.ignore_working_folder()
    die_with_parent(signal.SIGKILL)
    # a kernel or two at a time are compiled: starting threads for more takes longer than they save
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    for number in (signal.SIGINT, signal.SIGHUP):  # of the terminal, to all processes
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    _write_output_to(Path(log_file))
    # a lock of a library, as tqdm's, would have a name otherwise, which a killed process leaves
    multiprocessing.set_start_method("fork", force=True)
    faulthandler.enable()  # where a segmentation fault came from
    if device == "cpu":
        _limit_memory()  # else the kernel would kill a process, and perhaps not this one
    torch.use_deterministic_algorithms(deterministic)
    connection.send(("ready", -1, {}))
    reporter = Reporter(connection)
    gc.disable()  # while the first job imports what it needs, which stays
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        gc.collect()
        gc.freeze()  # the libraries' objects: going through them takes longer than many a cell
        gc.enable()
        try:
            job.measure(job.cells, reporter)
        except _Poisoned:
            return  # a new process goes on
        free_memory()
        connection.send(("done", -1, {}))


def _write_output_to(path: Path) -> None:
    with open_plain(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _limit_memory() -> None:
    """Allocations beyond the free memory fail, so that running out of it is an error to catch."""
    if sys.platform != "linux":
        return
    used = _kib("/proc/self/status", "VmData")
    free = _kib("/proc/meminfo", "MemAvailable")
    limit, taken = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None:
        free = min(free, (limit - (taken or 0)) // 1024)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = (used + int(0.9 * free)) * 1024
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _cgroup_bytes(name: str) -> int | None:
    """A limit of the container; None where there is none."""
    path = Path("/sys/fs/cgroup", name)
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _kib(file: str, key: str) -> int:
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"{file} has no {key}")

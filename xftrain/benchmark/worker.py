"""The worker process that measures cells; if it crashes, only the current cell is lost."""

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

from xftrain.benchmark.cells import Cell, Status
from xftrain.errors import ConfigError
from xftrain.utils.device_memory import is_out_of_memory
from xftrain.utils.files import open_plain
from xftrain.utils.processes import die_with_parent
from xftrain.utils.untrusted_folder import protect_libraries

T = TypeVar("T")
# (kind, index of the cell, fields); the kind is ready, begin, note, row or done
Message = tuple[str, int, dict[str, Any]]


class Unsupported(Exception):
    """A cell is refused, with the reasons."""


class _BrokenDevice(Exception):
    """The device raised an error after which this process cannot use it."""


@dataclass(frozen=True)
class Job:
    """Cells that one process measures together, in turns.

    Attributes:
        measure: a function that reports a row for each cell; module-level, since it is pickled.
        cells: the cells to measure.
    """

    measure: Callable[[Sequence[Any], Reporter], None]
    cells: tuple[Cell, ...]


class Reporter:
    """Reports to the parent process which cell is being measured, and its row."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def start_cell(self, index: int) -> None:
        """Marks a cell as the current one, to which a crash is attributed."""
        sys.stdout.flush()
        # the log so far belongs to earlier cells
        self._send("begin", index, {"log_bytes": os.fstat(1).st_size})

    def heartbeat(self, index: int, **fields: Any) -> None:
        """Sends a heartbeat, with fields for the cell's row in case this process dies."""
        self._send("note", index, fields)

    def row(self, index: int, status: Status, reason: str | None = None, **fields: Any) -> None:
        """Sends the cell's row."""
        self._send("row", index, {"status": status, "reason": reason, **fields})

    def attempt(self, index: int, function: Callable[..., T], *args: Any) -> T | None:
        """Calls a function; if it raises, reports the error as the cell's row and returns None."""
        self.start_cell(index)
        try:
            return function(*args)
        except Exception as error:
            status, reason = outcome(error)
            if status == "failed":
                traceback.print_exc()  # to the log of this process
            self.row(index, status, reason)
            if "CUDA error" in reason:
                raise _BrokenDevice from None
        free_memory()
        return None

    def _send(self, kind: str, index: int, fields: dict[str, Any]) -> None:
        self._connection.send((kind, index, fields))


def outcome(error: Exception) -> tuple[Status, str]:
    """The status and the reason of a cell that raised this exception."""
    text = " ".join(str(error).split())
    if isinstance(error, Unsupported | ConfigError):
        return "unsupported", text
    if is_out_of_memory(error):
        return "oom", text.partition(". GPU 0 has")[0] or "out of memory"
    return "failed", f"{type(error).__name__}: {text}"


def free_memory() -> None:
    """Frees unused memory for the next cell."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def serve(connection: Connection, log_file: str, device: str, deterministic: bool) -> None:
    """Measures one job after the other until the parent closes the connection."""
    protect_libraries()
    die_with_parent(signal.SIGKILL)
    # at most two kernels are compiled at a time: starting more threads costs more than it saves
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all processes
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    _write_output_to(Path(log_file))
    # otherwise a library's lock, such as tqdm's, is a named semaphore that a killed process leaks
    multiprocessing.set_start_method("fork", force=True)
    faulthandler.enable()  # shows where a segmentation fault came from
    if device == "cpu":
        _limit_memory()  # otherwise the OOM killer may kill another process
    torch.use_deterministic_algorithms(deterministic)
    connection.send(("ready", -1, {}))
    reporter = Reporter(connection)
    gc.disable()  # while the first job imports modules, whose objects stay alive
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        gc.collect()
        gc.freeze()  # exclude the libraries' objects: scanning them takes longer than many cells
        gc.enable()
        try:
            job.measure(job.cells, reporter)
        except _BrokenDevice:
            return  # a new process runs the other cells
        free_memory()
        connection.send(("done", -1, {}))


def _write_output_to(path: Path) -> None:
    with open_plain(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _limit_memory() -> None:
    """Limits allocations to the free memory, so that exceeding it raises an error."""
    if sys.platform != "linux":
        return
    used = _kib("/proc/self/status", "VmData")
    free = _kib("/proc/meminfo", "MemAvailable")
    limit, used_bytes = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None:
        free = min(free, (limit - (used_bytes or 0)) // 1024)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = (used + int(0.9 * free)) * 1024
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _cgroup_bytes(name: str) -> int | None:
    """A memory limit of the container in bytes; None if there is none."""
    path = Path("/sys/fs/cgroup", name)
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _kib(file: str, key: str) -> int:
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"{file} has no {key}")

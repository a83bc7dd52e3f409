"""Processes that tokenize chunks side by side, with a bounded number of chunks in memory."""

from __future__ import annotations

import fcntl
import os
import pickle
import queue
import subprocess
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from xftrain.data.tokens.child import command_of
from xftrain.data.tokens.chunks import Chunk
from xftrain.data.tokens.shards import write_shard
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.errors import RunError
from xftrain.utils.processes import Process, describe_exit

_QUEUED = 2  # chunks that wait for a process
_AHEAD = 2  # chunks that a process has: one that it tokenizes, and the next
_PIPE_BYTES = 1 << 20  # of a pipe to a process
_WAIT_S = 0.1
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of the control group, as in a container
# One thread each: the processes already use all CPUs.
_VARIABLES = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def usable_cpus() -> int:
    """The number of CPUs that this process may use, by its affinity and its control group."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = float(found or 1)
    with suppress(OSError, ValueError):
        quota, period = _CPU_LIMIT.read_text("ascii").split()
        limit = min(limit, int(quota) / int(period))
    return max(1, round(limit))


class Pool:
    """Tokenizes chunks in other processes; a context that ends them.

    Args:
        num_workers: number of processes; 0 tokenizes in this one.
        tokenizer: tokenizes the chunks.

    Attributes:
        num_done: number of shards that have been written.
        pending: paths of the shards that have not.
    """

    def __init__(self, num_workers: int, tokenizer: Tokenizer) -> None:
        self.num_done = 0
        self.pending: set[Path] = set()
        self._num_workers, self._tokenizer = num_workers, tokenizer
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._queue: queue.Queue[tuple[Path, Chunk, bytes] | None] = queue.Queue(_QUEUED)
        self._errors: list[Exception] = []
        self._processes: list[Process] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_closed.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    assert stream is not None
                    stream.close()
            process.wait()

    def submit(self, path: Path, chunk: Chunk, digest: bytes) -> None:
        """Has a chunk tokenized and its shard written; waits while enough chunks are waiting.

        Raises:
            Exception: what has gone wrong with an earlier chunk.
        """
        if not self._num_workers:
            write_shard(path, chunk, self._tokenizer, digest)
            self.num_done += 1
            return
        if not self._processes:
            self._start()
        self.pending.add(path)
        self._put((path, chunk, digest))

    def finish(self) -> None:
        """Waits until all shards are written; raises what has gone wrong with one."""
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_WAIT_S)
                self._check()
        self._check()

    def _put(self, item: tuple[Path, Chunk, bytes] | None) -> None:
        while True:
            self._check()
            with suppress(queue.Full):
                self._queue.put(item, timeout=_WAIT_S)
                return

    def _check(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _start(self) -> None:
        command = command_of("xftrain.data.tokens.worker")
        for _ in range(self._num_workers):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_VARIABLES},
            )
            assert process.stdin is not None
            with suppress(OSError, AttributeError):  # fewer turns of the threads for each chunk
                fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            self._processes.append(process)
            thread = threading.Thread(target=self._serve, args=(process,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, process: Process) -> None:
        """Gives one process its chunks."""
        try:
            assert process.stdin is not None and process.stdout is not None
            self._send(process, self._tokenizer)
            sent: deque[Path] = deque()  # paths of the shards that are not written yet
            while (request := self._next()) is not None:
                self._send(process, request)
                sent.append(request[0])
                del request
                if len(sent) == _AHEAD:
                    self._receive(process, sent.popleft())
            while sent:
                self._receive(process, sent.popleft())
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._errors.append(_death(process))
        except Exception as error:
            self._errors.append(error)

    def _receive(self, process: Process, path: Path) -> None:
        """Waits until the process has written this shard."""
        assert process.stdout is not None
        if (error := pickle.load(process.stdout)) is not None:
            raise error
        with self._lock:
            self.num_done += 1
        self.pending.discard(path)

    def _next(self) -> tuple[Path, Chunk, bytes] | None:
        """The next request; None if there are no more, or the context has ended."""
        while not self._is_closed.is_set():
            with suppress(queue.Empty):
                return self._queue.get(timeout=10 * _WAIT_S)
        return None

    @staticmethod
    def _send(process: Process, content: Any) -> None:
        assert process.stdin is not None
        pickle.dump(content, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()


def _death(process: Process) -> RunError:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        code = None
    return RunError(
        f"data.num_workers: a process that tokenizes ended too early, {describe_exit(code)}: run "
        "again, which resumes the preparation, with a smaller data.num_workers if memory ran out."
    )

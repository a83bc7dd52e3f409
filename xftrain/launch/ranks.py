"""Starts the ranks of a run on several devices; each rank runs this command again.

Lightning would start them from `sys.argv`: in a sweep, each rank would run the whole sweep, and a
rank that dies would end the sweep. Since they are started here, Lightning finds existing ranks, as
under torchrun, which is supported too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGINT, SIGUSR1
from typing import Any

from xftrain.config.overrides import override_strings, quoted
from xftrain.errors import ConfigError, RunError, Stopped
from xftrain.multirun import jobs
from xftrain.utils import console, processes
from xftrain.utils.files import read_json, read_text, write_json
from xftrain.utils.processes import Process, describe_exit
from xftrain.utils.redaction import hidden_in_message

_GRACE_S = 10.0  # time for ranks to end after SIGTERM, and to report which of them died
_NOTICE_S = 5.0  # time for this rank to notice another's death, which gloo does at once
_END_S = 30.0  # time for the other ranks to end after this one
_POLL_S = 0.2
_SILENT = ("hydra/job_logging=disabled",)  # only rank 0 logs

_STOPS = {Stopped(n).code: int(n) for n in (*processes.END_SIGNALS, SIGUSR1, SIGINT)}

Ranks = Sequence[Process]


@contextlib.contextmanager
def other_ranks(num_ranks: int, settings: Any, run_dir: Path) -> Iterator[None]:
    """Starts the other ranks for a body that runs as rank 0, and waits until they end.

    Args:
        num_ranks: the number of ranks; nothing is done for 1, or if a launcher has started them.
        settings: Hydra's own configuration of the run.
        run_dir: the run folder.

    Raises:
        RunError: another rank died; the message includes its last output.
    """
    if num_ranks == 1 or processes.is_rank():
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {
        "LOCAL_RANK": "0",
        "RANK": "0",
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # mode 700, since any process that can write there could join as a rank
    with tempfile.TemporaryDirectory(prefix="xftrain-ranks-") as store_folder:
        with processes.environment({**ours, processes.RANKS_VARIABLE: store_folder}):
            yield from _run_with_other_ranks(num_ranks, settings, run_dir)


@contextlib.contextmanager
def rank_overrides(*, is_ours: bool) -> Iterator[list[str]]:
    """Yields Hydra overrides that silence a rank other than 0 that torchrun started.

    Only rank 0 logs and owns the run folder. Hydra makes a folder for each process, which is
    temporary for the other ranks.

    Args:
        is_ours: whether `other_ranks` started this rank, already with these overrides.
    """
    if is_ours or processes.rank() == 0:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [*_SILENT, "hydra.output_subdir=null", f"hydra.run.dir={quoted(folder)}"]


def _run_with_other_ranks(num_ranks: int, settings: Any, run_dir: Path) -> Iterator[None]:
    message_files = [run_dir / f".rank{rank}_said" for rank in range(1, num_ranks)]
    ranks: list[Process] = []
    is_ended = threading.Event()
    patience_s = _END_S
    processes.rank_died.clear()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for rank, message_file in enumerate(message_files, start=1):
            message_file.unlink(missing_ok=True)
            ranks.append(_start(rank, settings, run_dir, message_file))
        watch = (ranks, message_files, is_ended, settings, run_dir)
        threading.Thread(target=_watch, args=watch, daemon=True, name="ranks").start()
        yield
    except Exception as error:
        patience_s = 0.0  # the other ranks would wait for this one forever
        if isinstance(error, ConfigError | RunError) or not is_caused_by_another_rank(error):
            raise
        if message := _first_death(ranks, message_files, wait_s=_GRACE_S):
            _record_cause(run_dir, message)
            raise RunError(message) from error
        if number := _stop_signal(ranks):
            _record_cause(run_dir, str(Stopped(number)), "stopped")
            raise Stopped(number) from error
        raise
    except BaseException:  # a stop signal, which all ranks handle
        patience_s = _GRACE_S
        raise
    finally:
        is_ended.set()
        processes.end_processes(ranks, patience_s=patience_s, wait_s=_GRACE_S)
        for message_file in message_files:
            message_file.unlink(missing_ok=True)


def _start(rank: int, settings: Any, run_dir: Path, message_file: Path) -> Process:
    command = jobs.job_command(settings, run_dir, override_strings(settings.overrides.task))
    silent = [*command, *_SILENT]
    own = {
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        jobs.MESSAGE_FILE_VARIABLE: str(message_file.absolute()),
    }
    environment = {**os.environ, **own}
    return subprocess.Popen(silent, cwd=settings.runtime.cwd, env=environment)


def _watch(
    ranks: Ranks,
    message_files: Sequence[Path],
    is_ended: threading.Event,
    settings: Any,
    run_dir: Path,
) -> None:
    """Ends this process if another rank died while this one waits for it, as NCCL may do."""
    died_at: float | None = None
    while not is_ended.wait(_POLL_S):
        message = _first_death(ranks, message_files)
        if message and died_at is None:
            died_at = time.monotonic()
            processes.rank_died.set()
        if message and died_at is not None and time.monotonic() - died_at > _NOTICE_S:
            jobs.write_end("failed", message, settings, run_dir)
            console.say(message)
            for process in ranks:
                process.kill()
            for message_file in message_files:
                message_file.unlink(missing_ok=True)
            os._exit(1)


def _first_death(ranks: Ranks, message_files: Sequence[Path], wait_s: float = 0.0) -> str | None:
    """Describes the rank that died, with its last message; None if all are alive or succeeded."""
    deadline = time.monotonic() + wait_s
    while True:
        for rank, (process, message_file) in enumerate(
            zip(ranks, message_files, strict=False), start=1
        ):
            if process.poll() in (None, 0, *_STOPS):  # a stop by a signal is no failure
                continue
            message = read_text(message_file)
            return (
                f"rank {rank} ended the run: {message or describe_exit(process.returncode) + '.'}"
            )
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_S)


def is_caused_by_another_rank(error: Exception) -> bool:
    """Whether this rank failed because another one died."""
    message = f"{type(error).__name__}: {error}"
    return any(word in message for word in ("Connection", "gloo", "NCCL", "DistBackendError"))


def _stop_signal(ranks: Ranks) -> int | None:
    """The signal that ended one of the ranks before it could notify the others; else None."""
    codes = [process.poll() for process in ranks]
    return next((_STOPS[code] for code in codes if code in _STOPS), None)


def _record_cause(run_dir: Path, error: str, status: str = "failed") -> None:
    """Replaces the error in `result.json`, which only has this rank's symptom, by the cause."""
    result = read_json(run_dir / "result.json")
    if result is not None:
        ended = {**result, "status": status, "error": hidden_in_message(error)}
        write_json(ended, run_dir / "result.json")

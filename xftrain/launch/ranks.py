"""Starts the ranks of a run on several devices; each rank runs this command again.

Lightning would start them from `sys.argv`: in a sweep each rank would run the whole sweep, and a
rank that dies would end the sweep. Since they are started here, Lightning finds existing ranks,
as it does under torchrun, which works as well.
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
_NOTICE_S = 5.0  # time for this rank to notice that another died, as gloo does at once
_END_S = 30.0  # time for the other ranks to end after this one
_POLL_S = 0.2
_SILENT = ("hydra/job_logging=disabled",)  # only rank 0 logs

_STOPS = {Stopped(n).code: int(n) for n in (*processes.END_SIGNALS, SIGUSR1, SIGINT)}

Ranks = Sequence[Process]


@contextlib.contextmanager
def started(num_ranks: int, settings: Any, run_dir: Path) -> Iterator[None]:
    """Starts the other ranks for a body that runs as rank 0, and waits for their end.

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
    # mode 700, since whoever can write there could join as a rank
    with tempfile.TemporaryDirectory(prefix="xftrain-ranks-") as meeting:
        with processes.environment({**ours, processes.RANKS_VARIABLE: meeting}):
            yield from _with_others(num_ranks, settings, run_dir)


@contextlib.contextmanager
def following(*, is_ours: bool) -> Iterator[list[str]]:
    """Yields Hydra overrides that silence a rank other than 0 that torchrun started.

    Only rank 0 logs and owns the run folder. Hydra makes a folder for each process, which is
    temporary for the other ranks.

    Args:
        is_ours: whether `started` started this rank, already with these overrides.
    """
    if is_ours or processes.rank() == 0:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [*_SILENT, "hydra.output_subdir=null", f"hydra.run.dir={quoted(folder)}"]


def _with_others(num_ranks: int, settings: Any, run_dir: Path) -> Iterator[None]:
    words = [run_dir / f".rank{rank}_said" for rank in range(1, num_ranks)]
    ranks: list[Process] = []
    over = threading.Event()
    patience_s = _END_S
    processes.rank_died.clear()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for rank, place in enumerate(words, start=1):
            place.unlink(missing_ok=True)
            ranks.append(_start(rank, settings, run_dir, place))
        watch = (ranks, words, over, settings, run_dir)
        threading.Thread(target=_watch, args=watch, daemon=True, name="ranks").start()
        yield
    except Exception as error:
        patience_s = 0.0  # the other ranks would wait for this one
        if isinstance(error, ConfigError | RunError) or not is_of_another(error):
            raise
        if said := _first_death(ranks, words, wait_s=_GRACE_S):
            _correct(run_dir, said)
            raise RunError(said) from error
        if number := _stopped_by(ranks):
            _correct(run_dir, str(Stopped(number)), "stopped")
            raise Stopped(number) from error
        raise
    except BaseException:  # a stop signal, which all ranks handle
        patience_s = _GRACE_S
        raise
    finally:
        over.set()
        processes.end_processes(ranks, patience_s=patience_s, wait_s=_GRACE_S)
        for place in words:
            place.unlink(missing_ok=True)


def _start(rank: int, settings: Any, run_dir: Path, words: Path) -> Process:
    command = jobs.job_command(settings, run_dir, override_strings(settings.overrides.task))
    quiet = [*command, *_SILENT]
    own = {"LOCAL_RANK": str(rank), "RANK": str(rank), jobs.JOB: str(words.absolute())}
    environment = {**os.environ, **own}
    return subprocess.Popen(quiet, cwd=settings.runtime.cwd, env=environment)


def _watch(
    ranks: Ranks, words: Sequence[Path], over: threading.Event, settings: Any, run_dir: Path
) -> None:
    """Ends this process if another rank died while this one waits for it, as NCCL may for long."""
    died_at: float | None = None
    while not over.wait(_POLL_S):
        said = _first_death(ranks, words)
        if said and died_at is None:
            died_at = time.monotonic()
            processes.rank_died.set()
        if said and died_at is not None and time.monotonic() - died_at > _NOTICE_S:
            jobs.write_end("failed", said, settings, run_dir)
            console.say(said)
            for process in ranks:
                process.kill()
            for place in words:
                place.unlink(missing_ok=True)
            os._exit(1)


def _first_death(ranks: Ranks, words: Sequence[Path], wait_s: float = 0.0) -> str | None:
    """Names the rank that died and its last output; None if all are alive or succeeded."""
    deadline = time.monotonic() + wait_s
    while True:
        for rank, (process, place) in enumerate(zip(ranks, words, strict=False), start=1):
            if process.poll() in (None, 0, *_STOPS):  # a stop by a signal is not a failure
                continue
            said = read_text(place)
            return f"rank {rank} ended the run: {said or describe_exit(process.returncode) + '.'}"
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_S)


def is_of_another(error: Exception) -> bool:
    """Whether this rank failed because another one died."""
    said = f"{type(error).__name__}: {error}"
    return any(word in said for word in ("Connection", "gloo", "NCCL", "DistBackendError"))


def _stopped_by(ranks: Ranks) -> int | None:
    """The signal that ended one of the ranks before it could tell the others."""
    codes = [process.poll() for process in ranks]
    return next((_STOPS[code] for code in codes if code in _STOPS), None)


def _correct(run_dir: Path, error: str, status: str = "failed") -> None:
    """Replaces the error in `result.json`, which only has this rank's symptom, by the cause."""
    result = read_json(run_dir / "result.json")
    if result is not None:
        ended = {**result, "status": status, "error": hidden_in_message(error)}
        write_json(ended, run_dir / "result.json")

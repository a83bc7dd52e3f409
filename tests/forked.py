"""Processes that need no interpreter of their own: forked from one that has imported everything.

`python -m xftrain` and a process of a benchmark spend 3 s on imports, one of these a tenth of it.
They see the environment, the folder and the arguments that they are given, and end as others do;
but their parent is the server, so that what happens to a process without its parent is not seen.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xftrain.benchmark import pool
from xftrain.launch import ranks
from xftrain.multirun import jobs

ROOT = Path(__file__).parents[1]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def context() -> Any:
    """What multiprocessing starts processes with; the server is there after the first call."""
    with chdir(ROOT):  # where it finds what it is to import
        multiprocessing.forkserver.ensure_running()
    return _CONTEXT


class Forked:
    """A process that calls a function, as `subprocess.Popen` would have it.

    Args:
        function: of a module.
        arguments: of the function.
        cwd: its working folder.
        env: all of its environment; without one, that of this process.
        out: a file for what it prints; without one, it goes where that of this process goes.
        err: likewise, of what it says.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        cwd: Path | str,
        env: Mapping[str, str] | None = None,
        out: Path | None = None,
        err: Path | None = None,
    ) -> None:
        place = (str(cwd), dict(os.environ if env is None else env), out, err)
        self._process = context().Process(target=_begin, args=(place, function, arguments))
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("xftrain", timeout or 0.0)
        return int(self._process.exitcode)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _begin(place: tuple[Any, ...], function: Callable[..., object], arguments: Any) -> None:
    cwd, env, *streams = place
    for number, path in enumerate(streams, start=1):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    path = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder for folder in path if folder and folder not in sys.path]
    # what it starts is forked by the server that is there
    vars(multiprocessing.forkserver._forkserver)["ensure_running"] = lambda: None
    pool.multiprocessing = SimpleNamespace(get_context=lambda how: context())
    ranks.subprocess = SimpleNamespace(Popen=_popen)
    jobs.subprocess = SimpleNamespace(Popen=_popen)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # as at the end of an interpreter


def main(words: Sequence[str]) -> None:
    """Of `python -m xftrain`, with these arguments."""
    from xftrain.launch import cli

    sys.argv = ["xftrain", *words]
    sys.exit(cli.main())


def _popen(command: Sequence[str], *, cwd: str, env: Mapping[str, str]) -> Forked:
    assert command[:3] == [sys.executable, "-m", "xftrain"], command
    return Forked(main, command[3:], cwd=cwd, env=env)


def ended(
    function: Callable[..., object],
    *arguments: Any,
    cwd: Path | str,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What became of a process that calls the function, as `subprocess.run` would have it."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = Forked(function, *arguments, cwd=cwd, env=env, out=out, err=err).wait(120)
        return subprocess.CompletedProcess([], code, out.read_text(), err.read_text())


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a sweep in this process train in such processes."""
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(Popen=_popen))


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """A benchmark in this process measures in such processes."""
    patch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda how: context()))


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)

"""Records which tests reach a statement, and runs tests in forks with the libraries imported."""

from __future__ import annotations

import builtins
import os
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from scripts.mutations import Mutation

LOG = Path("mutant.log")
SECONDS = 15.0  # of the tests of one mutant, but for the quickest


class Reached(NamedTuple):
    """What the tests of a part do: seconds of each, and which of them reach a statement."""

    seconds: dict[str, float]
    tests_at: dict[str, dict[int, set[str]]]  # by file and line

    def tests(self, file: str, mutation: Mutation) -> list[str]:
        """Those that reach the changed statement, the quickest first, for so many seconds."""
        found = self.tests_at.get(file, {}).get(mutation.statement, set())
        all_ = not mutation.statement or "" in found  # made when the tests were collected
        names = self.seconds if all_ else found & self.seconds.keys()
        chosen, left = [], SECONDS
        for name in sorted(names, key=lambda name: self.seconds[name]):
            left -= self.seconds[name]
            if left > 0 or not chosen:
                chosen.append(name)
        return chosen


class Recorder:
    """A pytest plugin that notes which test reaches which statement of marked files."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.failed: set[str] = set()
        self.test = ""
        builtins.reached = self.reached  # type: ignore[attr-defined]

    def reached(self, file: str, line: int) -> None:
        self.lines[file][line].add(self.test)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.test = nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:  # it cannot tell a mutant
            self.failed.add(report.nodeid)
        elif not report.skipped:
            self.seconds[report.nodeid] += report.duration

    def pytest_runtest_logfinish(self) -> None:
        self.test = ""


class Chooser:
    """A pytest plugin that runs these tests, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.place = {name: number for number, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        chosen = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(chosen, key=lambda item: self.place[item.nodeid])


def in_fork(work: Callable[[], int], timeout_s: float) -> int | None:
    """The exit code of a forked process that does it; None where it took too long."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + timeout_s
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what a test has started
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def run_pytest(tests: Sequence[str], plugin: object, *more: str) -> int:
    """pytest's exit code."""
    import pytest

    # pytest's plugins among the libraries have been imported, and so are not rewritten
    quiet = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return int(pytest.main([*quiet, *more, *tests], plugins=[plugin]))

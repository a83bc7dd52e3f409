"""Records which tests reach a statement, and runs tests in forks of a process.

A fork starts with the libraries that its parent has imported.
"""

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
TEST_BUDGET_S = 15.0  # limit on the total duration of the tests that run against one mutant


class Coverage(NamedTuple):
    """The tests of a part, and the statements that they reach.

    Attributes:
        seconds: duration of each test that passes.
        tests_at: names of the tests that reach a statement, by file and line; "" stands for code
            that ran outside a test, such as during collection.
    """

    seconds: dict[str, float]
    tests_at: dict[str, dict[int, set[str]]]

    def tests(self, file: str, mutation: Mutation) -> list[str]:
        """Returns the tests that reach the mutated statement, the fastest first.

        They take at most `TEST_BUDGET_S` together, unless the fastest alone takes longer.
        """
        found = self.tests_at.get(file, {}).get(mutation.statement, set())
        may_be_any = not mutation.statement or "" in found  # it runs on import or collection
        names = self.seconds if may_be_any else found & self.seconds.keys()
        selected, remaining_s = [], TEST_BUDGET_S
        for name in sorted(names, key=lambda name: self.seconds[name]):
            remaining_s -= self.seconds[name]
            if remaining_s > 0 or not selected:
                selected.append(name)
        return selected


class Recorder:
    """A pytest plugin that records which test reaches which statement of instrumented files."""

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
        if report.failed:  # a test that fails anyway cannot detect a mutant
            self.failed.add(report.nodeid)
        elif not report.skipped:
            self.seconds[report.nodeid] += report.duration

    def pytest_runtest_logfinish(self) -> None:
        self.test = ""


class Selector:
    """A pytest plugin that runs only the given tests, in the given order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.position = {name: number for number, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        selected = [item for item in items if item.nodeid in self.position]
        items[:] = sorted(selected, key=lambda item: self.position[item.nodeid])


def run_in_fork(work: Callable[[], int], timeout_s: float) -> int | None:
    """Runs a function in a forked process; returns its exit code, or None after a timeout.

    The output goes to `LOG`.
    """
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
        os.killpg(child, signal.SIGKILL)  # also processes that a test has started
    if not ended:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def run_pytest(tests: Sequence[str], plugin: object, *more: str) -> int:
    """Runs pytest with a plugin and returns its exit code."""
    import pytest

    # pytest plugins that are already imported cannot have their asserts rewritten
    quiet = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    return int(pytest.main([*quiet, *more, *tests], plugins=[plugin]))

"""Faults are injected; what became of them is a table at the end.

`python -m pytest tests/reliability --faults` injects all of them; without the option, as in CI, a
share of those that come in numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.reliability.rank_commands import place
from xftrain.data.counting import Counting
from xftrain.model.backends import all_backends

__all__ = ["place"]
_TABLE: dict[str, list[int]] = {}  # fault -> injected, survived

Record = Callable[..., None]


@pytest.fixture
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """The number of faults to inject: a share of them, or with `--faults` all."""
    return lambda share, all_: all_ if request.config.getoption("--faults") else share


@pytest.fixture
def record() -> Record:
    """Notes faults of a kind that were injected and survived."""

    def note(fault: str, injected: int, survived: int) -> None:
        counts = _TABLE.setdefault(fault, [0, 0])
        counts[0] += injected
        counts[1] += survived

    return note


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test marked with the fault that it injects counts once."""
    report = (yield).get_result()  # type: ignore[func-returns-value, misc]
    marker = item.get_closest_marker("fault")
    if marker is not None and report.when == "call" and not report.skipped:
        counts = _TABLE.setdefault(marker.args[0], [0, 0])
        counts[0] += 1
        counts[1] += report.passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TABLE:
        return
    width = max(map(len, _TABLE))
    terminalreporter.section("faults")
    for fault, (injected, survived) in sorted(_TABLE.items()):
        terminalreporter.write_line(f"{fault:{width}}  {survived} of {injected} as promised")


@pytest.fixture
def poison(monkeypatch):
    """Makes the attention of a backend NaN in the training batches of given numbers."""

    def put(backend_name: str, *indices: int) -> None:
        (kind,) = (type(b) for b in all_backends() if b.name == backend_name)
        at: list[int] = []
        batch, call = Counting.batch, kind.__call__

        def note(self, split, step, rank=0):
            at[:] = [step] if split == "train" else []
            return batch(self, split, step, rank)

        def attention(self, q, k, v, handle):
            out = call(self, q, k, v, handle)
            return out * float("nan") if set(at) & set(indices) else out

        monkeypatch.setattr(Counting, "batch", note)
        monkeypatch.setattr(kind, "__call__", attention)

    return put

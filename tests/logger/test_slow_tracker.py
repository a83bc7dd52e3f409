"""A tracker's server that is slow or prints: the run waits for a limited time, in plain text."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xftrain.errors import RunError
from xftrain.train import tracker as tracker_module
from xftrain.train.tracker import Tracker
from xftrain.utils.console import plain_output, safe_streams

NAME = "run\x1b]0;title\x07\x1b[31m"


class Server(Tracker):
    """A tracker whose `make` is given."""

    def __init__(self, run_dir: Path, make: Any) -> None:
        super().__init__(run_dir)
        self._make = make

    def make(self) -> Any:
        return self._make()

    def send_text(self, tag: str, text: str, step: int) -> None:
        raise NotImplementedError

    def end(self, *, is_whole: bool) -> None:
        sys.stderr.write(f"ended {NAME} {sys.stdout.isatty()}\n")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_server_that_does_not_answer_ends_the_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    def make() -> None:
        os.chdir("/")  # as for the import of wandb
        release.wait(30)

    monkeypatch.setattr(tracker_module, "_START_S", 0.2)
    monkeypatch.chdir(tmp_path)
    server = Server(tmp_path, make)
    with pytest.raises(RunError, match=r"^logger.server has not begun within 0.2 s: its server is"):
        server.start_run({})
    assert Path.cwd() == tmp_path
    server.close_run(is_complete=False)  # which waits for nothing


def test_an_error_of_the_server_is_raised_where_the_run_is() -> None:
    def make() -> None:
        raise ConnectionError("no route")

    with pytest.raises(RunError, match=r"could not begin \(ConnectionError: no route\)"):
        Server(Path(), make).start_run({})
    names = [thread.name for thread in threading.enumerate() if thread.is_alive()]
    assert names.count("to Server") <= 1  # it may be about to end


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_what_a_server_says_is_printed_as_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def make() -> Any:
        print("begun", NAME, sys.stdout.isatty())
        return SimpleNamespace(log_hyperparams=lambda _: None)

    with safe_streams():
        server = Server(Path(), make)
        server.start_run({})
        server.close_run(is_complete=True)
        assert sys.stdout.isatty()
        sys.stdout.write("\x1b[1mbar")
    escaped = r"run\x1b]0;title\x07\x1b[31m"
    assert out.getvalue() == f"begun {escaped} False\n\x1b[1mbar"
    assert err.getvalue() == f"ended {escaped} False\n"


def test_a_progress_bar_that_prints_lines_above_itself_keeps_its_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with safe_streams():
        own, sys.stdout = sys.stdout, Terminal()  # which the bar puts there
        with plain_output():
            own.write("\x1b[2K")
        sys.stdout = own
    assert out.getvalue() == "\x1b[2K"

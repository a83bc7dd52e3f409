"""No text of somebody else looks like a line of ours, or fills the terminal and the log."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.launch import cli
from xftrain.multirun.command_state import Sweep
from xftrain.multirun.end import finish
from xftrain.utils import console
from xftrain.utils.console import SafeFormatter, safe_streams

FORGED = "x\n[12:34:56] done\r\x1b]0;EVIL\x07\u202e\u2028"


def formatted(message: str, *args: object, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("xftrain", logging.INFO, "", 0, message, args, info)
    return SafeFormatter("[%(asctime)s] %(message)s", "%H:%M:%S").format(record)


@pytest.mark.parametrize("template", ["%s", "sample:\n%s", "step of %s", "step %s\n"])
@given(text=st.text() | st.just(FORGED))
def test_no_value_of_a_message_begins_a_line(template: str, text: str) -> None:
    first, *others = formatted(template, text).splitlines()
    assert first.startswith("[") and all(line.startswith("  ") for line in others)


def test_no_error_begins_a_line_in_the_log_or_on_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        said = formatted("the run failed", error=error)
        console.show_traceback(error)
    _, start, *others = said.splitlines()
    assert start.startswith("Traceback")
    assert all(line.startswith("  ") for line in others) and "\x1b" not in said
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and all(line.startswith("  ") for line in others)


def test_a_message_that_nobody_could_read_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    name = "Z" * 2_000_000
    for said in (formatted("first %s", name), formatted("%s", name), formatted("a:\n%s", name)):
        assert len(said) < 21_000 and said.endswith(" characters)")
    assert len(formatted("%s", "line\n" * 1_000_000)) < 2_000_000
    console.say(name)
    assert len(capsys.readouterr().err) < 21_000


def test_what_is_printed_for_a_flag_obeys_no_terminal() -> None:
    out = io.StringIO()
    with redirect_stdout(out), safe_streams(is_printing=True):
        print(f"option\n\t{FORGED}")
    said = out.getvalue()
    assert not set(said) & set("\x1b\x07\r\u202e\u2028") and said.startswith("option\n\tx\n")


@pytest.mark.parametrize(
    ("word", "is_printing"),
    [
        *((word, True) for word in ("--help", "--hel", "-h", "--cfg=job", "-cjob", "-c", "-i")),
        *((word, False) for word in ("-m", "-cn", "-cd", "--config-name", "--config-dir=h", "c=h")),
    ],
)
def test_flags_that_print_are_known(word: str, is_printing: bool) -> None:
    assert bool(cli._PRINT_ONLY_FLAG(word)) == is_printing


def test_a_warning_of_a_library_obeys_no_terminal() -> None:
    err = io.StringIO()
    shown = warnings.showwarning
    with redirect_stderr(err), safe_streams():
        warnings.showwarning(UserWarning(FORGED), UserWarning, "file.py", 1)
    first, *others = err.getvalue().splitlines()
    assert "UserWarning: x" in first and all(line.startswith("  ") for line in others)
    assert "\x1b" not in err.getvalue() and warnings.showwarning is shown


def test_the_folder_of_a_sweep_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "sw\x1b]0;EVIL\x07\n[12:00:00] forged"
    folder.mkdir()
    monkeypatch.setattr("xftrain.multirun.end._draw", lambda rows, folder: None)
    assert finish(Sweep(folder)) is None
    said = capsys.readouterr().out
    assert "\x1b" not in said and r"sw\x1b]0;EVIL\x07\n[12:00:00] forged/summary.csv" in said

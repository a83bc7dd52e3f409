"""What reaches the terminal and the log: escaped, without secrets, and never the end of a run."""

from __future__ import annotations

import ast
import errno
import io
import logging
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from xftrain.utils import console
from xftrain.utils.console import (
    ConsoleHandler,
    LogFile,
    SafeFormatter,
    protect_handlers,
    safe_streams,
)
from xftrain.utils.files import NotPlainFile
from xftrain.utils.read_variables import READ

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;PWNED\x07\nxftrain: done, all is well\r\u202e"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(READ, "values", {"PIN": "pw7q9"})
    return "pw7q9"


def formatted(message: str, *args: object, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("xftrain", logging.INFO, "", 0, message, args, info)
    return SafeFormatter("%(message)s").format(record)


def test_a_message_cannot_forge_a_line_or_obey_the_terminal(secret):
    said = formatted("ckpt: %s", EVIL + secret)
    assert said.count("\n") == 0 and "\x1b" not in said and "\u202e" not in said
    assert said.startswith(r"ckpt: \x1b]0;PWNED\x07\nxftrain: done") and secret not in said
    assert said.endswith("${oc.env:PIN}")


@pytest.mark.parametrize("message", ["%s", "text:\n%s"])
def test_a_block_of_lines_keeps_them(message, secret):
    said = formatted(message, "a\n\tb " + secret + "\x1b[2J")
    assert said.endswith("a\n  \tb ${oc.env:PIN}\\x1b[2J")


def test_hydras_line_about_a_job_is_indented_by_blanks():
    line = logging.LogRecord("hydra._internal", logging.INFO, "", 0, "\t#3 : seq=\t8", (), None)
    assert SafeFormatter("%(message)s").format(line) == "  #3 : seq=\\t8"


def test_a_traceback_has_no_secret_in_any_of_its_exceptions(secret):
    try:
        try:
            raise KeyError(secret)
        except KeyError as cause:
            raise ValueError(f"{EVIL} {secret}") from cause
    except ValueError as error:
        said = formatted("the run failed", error=error)
    assert said.count("${oc.env:PIN}") >= 2 and secret not in said and "\x1b" not in said
    assert "direct cause" in said and "Traceback" in said


def test_handlers_of_the_users_own_are_made_safe(secret):
    root, stream = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("<%(levelname)s> %(message)s"))
    root.addHandler(handler)
    protect_handlers()
    protect_handlers()
    root.error("is %s", secret + "\x07")
    root.removeHandler(handler)
    assert stream.getvalue() == "<ERROR> is ${oc.env:PIN}\\x07\n"


def test_a_sentence_is_one_line_without_secrets(secret, capsys):
    console.say(f"no {secret}\n{EVIL}")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("xftrain: no ${oc.env:PIN}\\n\\x1b]0;")
    console.show_traceback(ValueError(secret + "\x1b"))
    said = capsys.readouterr().err
    assert secret not in said and "\x1b" not in said


def test_the_log_file_is_utf8_and_no_link(tmp_path):
    handler = LogFile(str(tmp_path / "a.log"))
    handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "└── ü \udcff", (), None))
    handler.close()
    assert (tmp_path / "a.log").read_bytes().decode() == "└── ü \\udcff\n"
    (tmp_path / "link").symlink_to(tmp_path / "a.log")
    with pytest.raises(NotPlainFile):
        LogFile(str(tmp_path / "link"))


class Failing(io.StringIO):
    """A stream whose reader is gone, or whose disk is full."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EPIPE, ""),
        (errno.EIO, ""),  # the terminal has closed
        (
            errno.ENOSPC,
            "xftrain: warning: standard output cannot be written (No space left on device).\n",
        ),
    ],
)
def test_output_that_cannot_be_written_is_said_once_and_ends_nothing(number, said):
    errors = io.StringIO()
    with redirect_stdout(Failing(number)), redirect_stderr(errors), safe_streams() as lost:
        handler = ConsoleHandler()
        for _ in range(3):
            print("of a callback")
            handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a line", (), None))
    assert errors.getvalue() == said
    assert bool(lost) == bool(said)


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, capsys):
    handler = LogFile(str(tmp_path / "a.log"))
    handler.stream.close()
    handler.stream = Failing(errno.ENOSPC)  # type: ignore[assignment]
    for _ in range(3):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a line", (), None))
    said = capsys.readouterr().err
    assert (
        said == f"xftrain: warning: {tmp_path}/a.log cannot be written (No space left on device).\n"
    )


def test_what_is_printed_has_no_secret(secret):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), safe_streams():
        print("token", secret)
        sys.stderr.writelines([f"warning: {secret}\n"])
    assert (out.getvalue(), err.getvalue()) == (
        "token ${oc.env:PIN}\n",
        "warning: ${oc.env:PIN}\n",
    )


def test_what_the_locale_cannot_encode_becomes_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    with redirect_stdout(stream), safe_streams():
        print("├── a ━━ └ │ ⠋ … • ü \udcc3")
    assert raw.getvalue() == b"+-- a -- + | * ... * \\xfc \\udcc3\n"


SMALL = "model.num_layers=1 model.dim=32 model.num_heads=2 seq=16 batch_tokens=128 model.attn=naive"


def test_a_run_piped_to_head_in_a_locale_without_utf8_goes_on_and_is_logged(tmp_path):
    # each line after the pipe was closed, and each with a box character, was a traceback
    command = (
        f"{sys.executable} -m xftrain trainer=cpu max_steps=2 hydra.run.dir=r {SMALL} | head -2"
    )
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    log = (tmp_path / "r" / "xftrain.log").read_text("utf-8")
    assert "── max_steps: 2" in log and "done in" in log
    assert "+-- seq: 16" in ended.stdout or "configuration" in ended.stdout


def test_every_text_file_is_opened_with_its_encoding():
    faults = []
    for path in (*ROOT.glob("xftrain/**/*.py"), *ROOT.glob("scripts/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            words = {keyword.arg for keyword in node.keywords}
            place = 1 if isinstance(node.func, ast.Name) else 0
            mode = node.args[place] if len(node.args) > place else None
            is_binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
            is_os = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "os.open"
            text = name in ("read_text", "write_text") or (name == "open" and not is_binary)
            given = "encoding" in words or (name == "read_text" and node.args)
            if text and not is_os and not given:
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert faults == []

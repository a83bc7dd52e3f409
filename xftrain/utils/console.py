"""Safe output to the terminal and the log: no secret, no control character, no write error.

The formatter of the log handlers, and `say`, pass all text through `redaction.hidden` and
`printable`, so that callers need not.
"""

from __future__ import annotations

import codecs
import copy
import errno
import io
import logging
import os
import sys
import threading
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from xftrain.utils.files import open_plain
from xftrain.utils.printable import block, printable, short_line
from xftrain.utils.redaction import hidden, hidden_in_message

_ASCII = "xftrain.ascii"  # the name of a codec error handler
# Errors of a closed pipe and of a closed terminal.
_NO_READER = (errno.EPIPE, errno.EIO)


# Whether this thread's output is plain text, by `plain_output`. Of the process, as `sys.stdout` is:
# the libraries that write to it are passed no stream.
_thread = threading.local()


class SafeFormatter(logging.Formatter):
    """Formats a record, its traceback included, without secrets and control characters.

    A message is one line, whatever its arguments hold. If the format string has line breaks, or
    is only `%s`, for example for a table, the lines are kept, and all but the first are indented.
    """

    def __init__(self, *args: Any, inner: logging.Formatter | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Formats the record."""
        safe = copy.copy(record)
        template = str(record.msg)
        is_block = template == "%s" or "\n" in template
        text = hidden_in_message(record.getMessage())
        if record.name.startswith("hydra") and text.startswith("\t"):  # a job of a sweep
            text = f"  {text[1:]}"
        safe.msg, safe.args = block(text) if is_block else short_line(text), ()
        if record.exc_info and record.exc_info[0] is not None:
            lines = traceback.format_exception(*record.exc_info)
            safe.exc_text = block(hidden_in_message("".join(lines).rstrip("\n")))
        elif record.exc_text:
            safe.exc_text = block(hidden_in_message(record.exc_text))
        if record.stack_info:
            safe.stack_info = block(hidden_in_message(record.stack_info))
        return super().format(safe) if self._inner is None else self._inner.format(safe)


class _Handler(logging.StreamHandler[TextIO]):
    """A log handler that reports its first write error in one line and lets the run continue."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Reports a write error; an error in the message itself is shown as `logging` does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            say(f"warning: {self.destination()} cannot be written ({error.strerror or error}).")

    def destination(self) -> str:
        return "the log on the console"


class ConsoleHandler(_Handler):
    """Writes to the current `sys.stdout`.

    A progress bar replaces `sys.stdout` by a stream that prints lines above the bar; lines that
    bypass that stream would be erased with the bar.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message."""
        self.stream = sys.stdout
        super().emit(record)


class LogFile(_Handler, logging.FileHandler):
    """The log file of a run: UTF-8 in every locale, and never opened through a symbolic link."""

    def __init__(self, filename: str) -> None:
        logging.FileHandler.__init__(self, filename, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> io.TextIOWrapper:
        file = open_plain(Path(self.baseFilename), "ab")
        return io.TextIOWrapper(file, encoding=self.encoding, errors=self.errors)

    def destination(self) -> str:
        return self.baseFilename


class _Stream:
    """Standard output or error with secrets hidden; writing to it never fails.

    A training run continues when the reader of its output has exited, as `| head` does, or when
    the disk that the output goes to is full.
    """

    def __init__(self, stream: TextIO, name: str, *, is_printing: bool = False) -> None:
        self._stream, self._name, self._is_printing = stream, name, is_printing
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        # a stream that wraps this one, such as a progress bar's, writes its own control codes
        is_direct = sys.stdout is cast(TextIO, self) or sys.stderr is cast(TextIO, self)
        is_plain = self._is_printing or (_is_plain() and is_direct)
        try:
            self._stream.write(printable(hidden(text)) if is_plain else hidden(text))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        return not _is_plain() and self._stream.isatty()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Redirects all further output, also of child processes, to the null device."""
        if self.error is not None:
            return
        self.error = error
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if error.errno not in _NO_READER and sys.stderr is not cast(TextIO, self):
            say(f"warning: {self._name} cannot be written ({error.strerror or error}).")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_plain() -> bool:
    return getattr(_thread, "is_plain", False)


@contextmanager
def plain_output() -> Iterator[None]:
    """Escapes control characters in what this thread writes to the safe streams.

    It is for libraries that print a server's messages. `isatty` is false for them, so that they
    print neither colors nor prompts.
    """
    before, _thread.is_plain = _is_plain(), True
    try:
        yield
    finally:
        _thread.is_plain = before


@contextmanager
def safe_streams(*, is_printing: bool = False) -> Iterator[list[OSError]]:
    """Makes standard output and error safe; yields a list that collects their write errors.

    A character that the locale cannot encode is replaced by an ASCII character or by its escape.

    Args:
        is_printing: whether the command only prints text, such as `--help`, so that control
            characters can be escaped.
    """
    _open_closed()
    errors: list[OSError] = []
    before = sys.stdout, sys.stderr
    out = _Stream(sys.stdout, "standard output", is_printing=is_printing)
    err = _Stream(sys.stderr, "standard error")
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ASCII)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    shown_before, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        yield errors
    finally:
        warnings.showwarning = shown_before
        for stream in (out, err):
            stream.flush()
        errors += [out.error] if out.error and out.error.errno not in _NO_READER else []
        sys.stdout, sys.stderr = before


def protect_handlers() -> None:
    """Makes all handlers of the root logger safe, also those of the user's `hydra/job_logging`."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SafeFormatter):
            handler.setFormatter(SafeFormatter(inner=handler.formatter or logging.Formatter()))


def say(text: str) -> None:
    """Writes one sentence to standard error."""
    sys.stderr.write(f"xftrain: {short_line(hidden_in_message(text))}\n")
    sys.stderr.flush()


def show_traceback(error: BaseException) -> None:
    """Writes a traceback to standard error."""
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    sys.stderr.write(f"{block(hidden_in_message(text))}\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Replaces `warnings.showwarning`, since a warning's text may hold a secret."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(f"{block(hidden_in_message(text.rstrip()))}\n")


@contextmanager
def raised_log_level(name: str = "xftrain", level: int = logging.WARNING) -> Iterator[None]:
    """Raises the level of a logger and its children, for scripts that print their own figures."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def _open_closed() -> None:
    """Opens standard streams that the parent closed, so that no file gets their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """An ASCII replacement for a character that the locale cannot encode, or its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_ascii_likeness, text)), error.end


def _ascii_likeness(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith("BOX DRAWINGS"):
        turns = " AND " in name or "ARC" in name
        return "+" if turns else "|" if "VERTICAL" in name else "-"
    if name.startswith("BRAILLE PATTERN"):  # the frames of rich's spinner
        return "*"
    return {"\u2026": "...", "\u2022": "*"}.get(letter, letter.encode("unicode_escape").decode())


codecs.register_error(_ASCII, _in_ascii)

"""Makes token files in a process of its own, while a run trains on those that are there already."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import IO

from xftrain.data.tokens.cache import Preparation
from xftrain.data.tokens.child import command_of, reply_stream
from xftrain.errors import RunError
from xftrain.utils.processes import Process, describe_exit


class Background:
    """A process that makes the token files of a corpus; it ends with this one, or by `end`.

    What it logs is logged here. It finishes what an earlier preparation has left, and waits for
    another one of the same token files.

    Args:
        preparation: what it makes.

    Attributes:
        process: the process.
    """

    def __init__(self, preparation: Preparation) -> None:
        self.process = process = subprocess.Popen(
            command_of("xftrain.data.tokens.background"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:
            pickle.dump(preparation, stdin)
        self._outcome: list[Exception | None] = []
        self._thread = threading.Thread(
            target=_relay, args=(process, self._outcome), daemon=True, name="preparation"
        )
        self._thread.start()
        self.end = weakref.finalize(self, _end, process)  # also when this process ends

    def is_running(self) -> bool:
        """Whether the token files are still being made.

        Raises:
            Exception: what has gone wrong.
        """
        if self._outcome and self._outcome[0] is not None:
            raise self._outcome[0]
        return not self._outcome


def _end(process: Process) -> None:
    process.kill()
    process.wait()


def _relay(process: Process, outcome: list[Exception | None]) -> None:
    assert process.stdout is not None
    try:
        with process.stdout as replies:
            while not isinstance(reply := pickle.load(replies), _Outcome):
                name, level, message = reply
                logging.getLogger(name).log(level, "%s", message)
        outcome.append(reply.error)
    except (EOFError, pickle.UnpicklingError):
        outcome.append(
            RunError(
                "data.stream: the process that prepares the text ended too early, "
                f"{describe_exit(process.wait())}: run again, which resumes the preparation."
            )
        )


class _Outcome:
    def __init__(self, error: Exception | None) -> None:
        self.error = error


class _Replies(logging.Handler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        pickle.dump((record.name, record.levelno, record.getMessage()), self._file)
        self._file.flush()


def main() -> None:
    """Makes the token files that standard input describes, as a process of its own."""
    replies = reply_stream()
    preparation = pickle.load(sys.stdin.buffer)
    logging.basicConfig(level=logging.INFO, handlers=[_Replies(replies)])
    error: Exception | None = None
    try:
        preparation.finish()
    except Exception as raised:
        error = raised
    # `main` is of this module, while the parent knows `_Outcome` by its name
    pickle.dump(_Outcome(error), replies)
    replies.flush()

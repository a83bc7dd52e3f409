"""The end of a command: its last sentence and its exit code."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from pathlib import Path

from xftrain.config.compose import COMPOSITION_ERRORS
from xftrain.config.composition_errors import sentence
from xftrain.errors import ConfigError, Stopped, SweepRefused
from xftrain.multirun import end
from xftrain.multirun.command_state import Sweep
from xftrain.utils.console import say, show_traceback
from xftrain.utils.files import replace_text
from xftrain.utils.printable import short_line
from xftrain.utils.redaction import hidden_in_message


class JobFailed(Exception):
    """The sentence to print and the exit code of a failed job; pickled between processes."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence, code)
        self.sentence, self.code = sentence, code


@dataclass(frozen=True)
class Ending:
    """Reports the end of this command.

    Attributes:
        sweep: the sweep of this command, without a folder in a single run.
        message_file: in a job of a sweep, the file for its last sentence, which the sweep prints.
    """

    sweep: Sweep
    message_file: Path | None

    def report(self, message: str, code: int) -> int:
        """Prints the last sentence, and returns the exit code."""
        if self.message_file is None:
            say(message)
        else:
            replace_text(self.message_file, short_line(hidden_in_message(message)))
        return code

    def finish_sweep(self, lost: Exception | None = None) -> int:
        """Finishes the sweep, if any; returns 1 if a job failed or was lost, else 0.

        Args:
            lost: the error of the launcher, if it raised one.
        """
        message = end.finish(self.sweep, lost)
        return 0 if message is None else self.report(message, 1)

    def report_error(self, error: BaseException) -> int:
        """Prints the last sentence of a command that an error ended, and returns its exit code.

        Raises:
            BaseException: the error itself, if it is neither an end of a command nor a fault.
        """
        if (last := last_sentence(error)) is not None:
            return self.report(*last)
        if not isinstance(error, Exception):
            raise error
        if self.sweep.folder is None:
            show_traceback(error)
            return 1
        return self.finish_sweep(error)


def last_sentence(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit code of an error that ends a command; None for any other error."""
    if isinstance(error, JobFailed):
        return error.sentence, error.code
    if isinstance(error, ConfigError | SweepRefused):
        return str(error), 2
    if isinstance(error, COMPOSITION_ERRORS):
        return sentence(error, sys.argv[1:]), 2
    if isinstance(error, OSError):
        if error.errno == errno.ENAMETOOLONG:  # for example, of an option from a variable
            return f"no file can have that name ({error}): use a shorter option or value.", 2
        return f"the run folder cannot be made ({error}): choose another hydra.run.dir.", 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted.", 130
    if isinstance(error, Stopped):
        return f"{error}.", int(error.code or 1)
    return _sentence_of_exit(error) if isinstance(error, SystemExit) else None


def _sentence_of_exit(stop: SystemExit) -> tuple[str, int] | None:
    """The same for `sys.exit`; None if its code is a number."""
    if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits like this after Ctrl-C
        return "interrupted.", 130
    if stop.code is None:  # and like this after SIGTERM
        return "stopped by SIGTERM.", 143
    if isinstance(stop.code, str):  # Python would print it without redaction
        return stop.code, 1
    return None

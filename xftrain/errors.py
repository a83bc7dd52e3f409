"""Errors that are meant for the person who typed the command, and the end by a signal."""

import signal


class ConfigError(ValueError):
    """The configuration is wrong: one sentence with the key, the rule, the value and the remedy.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


class RunError(RuntimeError):
    """The run failed for a reason outside the code (a full disk, a vanished file).

    The command line prints the sentence and exits with code 1, without a traceback.
    """


class SweepRefused(BaseException):
    """A sweep, or a run in a folder that is in use, cannot begin.

    No Exception, which Hydra would turn into a warning in a callback.
    """


class Stopped(SystemExit):
    """A signal ended the run: an exit with the code that says which.

    143 for SIGTERM, 129 for SIGHUP, 152 for SIGXCPU and 130 for Ctrl-C, as shells have it; 75 for
    SIGUSR1 and SIGUSR2, one of which a scheduler sends before it takes the machine away: the code
    that asks to be run again.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        requeue = number in (signal.SIGUSR1, signal.SIGUSR2)
        super().__init__(75 if requeue else 128 + number)  # EX_TEMPFAIL

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def first_line(error: BaseException) -> str:
    """An error of somebody else's, short enough for a sentence."""
    return f"{type(error).__name__}: " + str(error).strip().partition("\n")[0]

"""Errors that are shown to the user as one sentence, and the exit after a signal."""

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
    """A sweep, or a run in a folder that is in use, cannot start.

    It derives from BaseException, since Hydra turns an Exception of a callback into a warning.
    """


class Stopped(SystemExit):
    """A signal ended the run; the exit code tells which one.

    By the convention of shells, 143 is SIGTERM, 129 SIGHUP, 152 SIGXCPU and 130 Ctrl-C. SIGUSR1
    and SIGUSR2, which schedulers send before preemption, give 75 (EX_TEMPFAIL), which asks to be
    requeued.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        requeue = number in (signal.SIGUSR1, signal.SIGUSR2)
        super().__init__(75 if requeue else 128 + number)  # EX_TEMPFAIL

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, shortened for use in a sentence."""
    return f"{type(error).__name__}: " + str(error).strip().partition("\n")[0]

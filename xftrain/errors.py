"""Errors that are meant for the person who typed the command."""


class ConfigError(ValueError):
    """The configuration is wrong: one sentence with the key, the rule, the value and the remedy.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


class RunError(RuntimeError):
    """The run failed for a reason outside the code (a full disk, a vanished file).

    The command line prints the sentence and exits with code 1, without a traceback.
    """

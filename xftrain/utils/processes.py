"""Child processes and ranks: their environment, their signals, and their end with the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from xftrain.errors import ConfigError, Stopped
from xftrain.utils.printable import one_line

Process = subprocess.Popen[bytes]

# Set when a rank that this process started has died. Of the process, as its children are: a thread
# of `launch.ranks` sets it, and each operation that waits for the other ranks looks at it.
rank_died = threading.Event()

RANKS_VARIABLE = "XFTRAIN_RANKS"  # the rendezvous folder of ranks that this package starts

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Signals that ask a process to end: from a process manager, a closed terminal, and the soft limit
# on CPU time. SIGQUIT keeps its default action and ends a process at once.
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)

# Integer variables by which torchrun, and `ranks` like it, pass a process its rank. A process is a
# rank if LOCAL_RANK and WORLD_SIZE are set; several ranks also need those of `_COMPLETE`.
_RANK_VARIABLES = (
    "LOCAL_RANK",
    "RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "MASTER_PORT",
)
_COMPLETE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Ranks of launchers that do not start the ranks of xftrain. Lightning reads them when it is
# imported, and fails if they are not integers; `distributed.set_lightning_rank` corrects it.
_IGNORED_RANKS = ("SLURM_PROCID", "JSM_NAMESPACE_RANK")
# The base folders of the XDG specification, which says to ignore a relative path in one.
_BASE_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
# Libraries fail if these are set to an empty string, too.
_UNSET_WHEN_EMPTY = (
    *_RANK_VARIABLES,
    *_IGNORED_RANKS,
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TORCH_LOGS",
)


def die_with_parent(number: signal.Signals) -> None:
    """Asks Linux to send this process a signal when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def describe_exit(code: int | None) -> str:
    """Describes an exit code in words."""
    if code is None or code >= 0:
        return f"the process ended with code {code}"
    cause = f"the process was ended by {signal.Signals(-code).name}"
    return cause + ", as the system does where memory runs out" * (code == -signal.SIGKILL)


def rank() -> int:
    """LOCAL_RANK, or 0 in a single-process run."""
    return _integer_variable("LOCAL_RANK") or 0


def is_rank() -> bool:
    """Whether a launcher started this process as a rank, with LOCAL_RANK and WORLD_SIZE."""
    return (
        _integer_variable("LOCAL_RANK") is not None and _integer_variable("WORLD_SIZE") is not None
    )


def num_ranks() -> int:
    """WORLD_SIZE of a rank, or 1 in a single-process run."""
    return (_integer_variable("WORLD_SIZE") if is_rank() else None) or 1


def drop_empty_variables() -> None:
    """Unsets empty variables on which libraries fail."""
    for name in _UNSET_WHEN_EMPTY:
        if not os.environ.get(name, "unset").strip():
            del os.environ[name]


def drop_relative_base_folders() -> list[str]:
    """Unsets base folders with a relative path, which libraries would make in the working folder.

    Returns:
        A warning for each.
    """
    warnings = []
    for name in _BASE_FOLDERS:
        path = os.environ.get(name, "")
        if path and not os.path.isabs(os.path.expanduser(path)):
            del os.environ[name]
            warnings.append(ignored_variable(name, path))
    return warnings


def ignored_variable(variable: str, path: str) -> str:
    """The warning about a base folder that is ignored."""
    return (
        f"{variable}={one_line(path)} is ignored, as the XDG specification says, because it is not "
        "an absolute path."
    )


def check_rank_variables() -> None:
    """Refuses rank variables that are incomplete, contradictory or of several machines.

    A process that is not a rank trains alone, as rank 0. Some machines set WORLD_SIZE for every
    program, and RANK=0 or LOCAL_RANK=0 agree with it.

    Raises:
        ConfigError: names the variables and the remedy.
    """
    found = {name: _integer_variable(name) for name in _RANK_VARIABLES}
    for name in _IGNORED_RANKS:
        _integer_variable(name)
    local_rank, size, global_rank = found["LOCAL_RANK"], found["WORLD_SIZE"], found["RANK"]
    if size == 0:
        raise ConfigError("WORLD_SIZE in the environment must be at least 1, got 0: unset it.")
    if local_rank is None:
        if global_rank is not None and (global_rank > 0 or (size or 1) > 1):
            raise _incomplete(found)
        return
    _refuse_several_nodes(found)
    if size is not None and local_rank >= size:
        raise ConfigError(
            f"LOCAL_RANK in the environment must be below WORLD_SIZE, got {local_rank} and {size}."
        )
    is_alone = local_rank == 0 and size in (None, 1) and found["LOCAL_WORLD_SIZE"] in (None, 1)
    if not is_alone and not all(os.environ.get(name, "").strip() for name in _COMPLETE):
        raise _incomplete(found)


def _refuse_several_nodes(found: Mapping[str, int | None]) -> None:
    local_rank, global_rank = found["LOCAL_RANK"], found["RANK"]
    nodes = (found["GROUP_WORLD_SIZE"] or 1, found["GROUP_RANK"] or 0, found["NODE_RANK"] or 0)
    local_size, size = found["LOCAL_WORLD_SIZE"], found["WORLD_SIZE"]
    if (
        nodes != (1, 0, 0)
        or (local_size is not None and size is not None and local_size != size)
        or (global_rank is not None and global_rank != local_rank)
    ):
        shown = ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)
        raise ConfigError(
            "xftrain trains on one machine, and the environment of this process describes a run "
            f"on several nodes ({shown}): start torchrun with --nnodes=1."
        )


def _incomplete(found: Mapping[str, int | None]) -> ConfigError:
    """The error for rank variables that are set without others that a rank needs."""
    given = [f"{name}={found[name]}" for name in _COMPLETE[:3] if found[name] is not None]
    missing = [name for name in _COMPLETE if not os.environ.get(name, "").strip()]
    if "LOCAL_RANK" in missing:
        missing = ["LOCAL_RANK"]  # the first that torchrun would set
    is_single = len(given) == 1
    return ConfigError(
        f"{' and '.join(given)} {'is' if is_single else 'are'} in the environment without "
        f"{', '.join(missing)}: start the ranks with torchrun, or unset "
        f"{'it' if is_single else 'both' if len(given) == 2 else 'them'}."
    )


def _integer_variable(name: str) -> int | None:
    """Reads an integer rank variable; None if it is unset or empty.

    Raises:
        ConfigError: the value is not an integer.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(
            f"{name} in the environment must be a whole number, as launchers of ranks set it, got "
            f"{text!r}: unset it."
        )
    return int(text)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for this process and its children, and restores them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def end_processes(
    processes: Sequence[Process],
    *,
    patience_s: float,
    wait_s: float,
    number: int = signal.SIGTERM,
) -> None:
    """Waits for processes to end, then signals the remaining ones, and finally kills them.

    Args:
        processes: processes that this one started.
        patience_s: seconds to wait before the signal.
        wait_s: seconds from the signal until they are killed.
        number: the signal, which they report as the cause of their end.
    """
    for stop, seconds in ((None, patience_s), (number, wait_s), (signal.SIGKILL, wait_s)):
        left = [process for process in processes if process.poll() is None]
        if stop:
            for process in left:
                process.send_signal(stop)
        deadline = time.monotonic() + seconds
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))


@contextmanager
def raising_stopped(*more: signal.Signals) -> Iterator[None]:
    """Raises `Stopped` for signals that ask the process to end, and for `more`.

    Code that waits for other processes can then end them. Signals that the parent made this
    process ignore, as `nohup` does with SIGHUP, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    handled = [*filter(is_handled, (*END_SIGNALS, *more))]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_handled(number: int) -> bool:
    """Whether a signal is handled; SIGHUP is not if it was ignored when this process started."""
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN

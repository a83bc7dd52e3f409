"""Locks a folder, so that only one command at a time writes to it.

The kernel releases the lock when the process ends, however it ends, so no lock is ever stale.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xftrain.errors import ConfigError
from xftrain.utils.files import NotPlainFile, open_plain, read_plain
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_POLL_S = 0.2
_OWNER_BYTES = 200
_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

# The lock files that this process holds for a whole command, by the real path of the folder.
_reserved: dict[str, IO[bytes]] = {}
_in_use: set[str] = set()  # folders that a run of this process is writing to
_locked_files: list[IO[bytes]] = []  # every file whose lock this process holds


def reserve(folder: Path, key: str, *, wait_s: float = 0.0) -> None:
    """Locks a folder for the rest of this command, until `release_reserved`.

    Args:
        folder: the folder, which is made if it does not exist.
        key: the override that names the folder, for the message.
        wait_s: how long to wait for another command to release the lock.

    Raises:
        ConfigError: another command holds the lock.
        OSError: the folder or the file in it cannot be made.
    """
    name = os.path.realpath(folder)
    if name not in _reserved:
        _reserved[name] = _acquire(folder, key, wait_s)


def release_reserved() -> None:
    """Releases the locks that `reserve` took."""
    while _reserved:
        _, file = _reserved.popitem()
        _release(file)


@contextmanager
def folder_lock(folder: Path, key: str) -> Iterator[None]:
    """Holds the lock of a folder, whether or not this command has reserved it.

    Raises:
        ConfigError: another command, or another run in this process, holds it.
        OSError: the folder or the file in it cannot be made.
    """
    name = os.path.realpath(folder)
    file = None
    if name in _in_use or name not in _reserved:
        file = _acquire(folder, key)
    _in_use.add(name)
    try:
        yield
    finally:
        _in_use.discard(name)
        if file is not None:
            _release(file)


def _acquire(folder: Path, key: str, wait_s: float = 0.0) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    path, deadline = folder / LOCK_FILE, time.monotonic() + wait_s
    try:
        file = open_plain(path, "ab")
    except NotPlainFile as error:
        raise ConfigError(
            f"{key}={folder} has something other than a plain file at {LOCK_FILE}, the file by "
            "which a run locks its folder: remove it, or choose another folder."
        ) from error
    try:
        while not _try_lock(file, folder):
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{key}={folder} is in use by another command{_owner(path)}: wait for it to "
                    "end, or choose another folder."
                )
            time.sleep(_POLL_S)
    except BaseException:
        file.close()
        raise
    with suppress(OSError):  # the lock holds even if the owner's description cannot be written
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
    _locked_files.append(file)
    return file


def _release(file: IO[bytes]) -> None:
    if file in _locked_files:  # otherwise this is a forked child process, which has closed the file
        _locked_files.remove(file)
        with suppress(OSError):  # the file system has no locks
            fcntl.flock(file, fcntl.LOCK_UN)  # a child that is being forked may hold it open
        file.close()


def _try_lock(file: IO[bytes], folder: Path) -> bool:
    """Tries to lock; also returns True, after a warning, if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        log.warning(
            "the file system of %s has no locks (%s): a second run in the same folder would not "
            "be noticed.",
            folder,
            error.strerror,
        )
    return True


def _owner(path: Path) -> str:
    """The description that the lock's owner wrote into the file, in parentheses."""
    with suppress(OSError):
        owner = one_line(read_plain(path, _OWNER_BYTES).decode("utf-8", "replace").strip())
        return f" ({owner})" if owner else ""
    return ""


def _close_in_child() -> None:
    """Closes lock files in a forked child, which would hold the locks after its parent's end."""
    while _locked_files:
        _locked_files.pop().close()


os.register_at_fork(after_in_child=_close_in_child)

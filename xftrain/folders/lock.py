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
from contextlib import suppress
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

# Of the process, as the locks are: a forked child must close the files of all commands of its
# parent, see `_close_in_child`.
_locked_files: list[IO[bytes]] = []


def acquire(folder: Path, key: str, wait_s: float = 0.0) -> IO[bytes]:
    """Locks a folder until `release` is called with the file that this returns.

    Args:
        folder: the folder, which is made if it does not exist.
        key: the override that names the folder, for the message.
        wait_s: how long to wait for another command to release the lock.

    Raises:
        ConfigError: another command holds the lock.
        OSError: the folder or the file in it cannot be made.
    """
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


def release(file: IO[bytes]) -> None:
    """Releases a lock that `acquire` took."""
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

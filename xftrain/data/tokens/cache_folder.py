"""The folder of token files: its path, a lock for one process at a time, and its owner."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xftrain.errors import ConfigError
from xftrain.utils.files import expand_home, open_plain, refuse_escaping_path
from xftrain.utils.printable import one_line
from xftrain.utils.processes import ignored_variable

log = logging.getLogger(__name__)


def cache_folder(cache_dir: str | None) -> Path:
    """The path of the folder, which is created if it is missing.

    Args:
        cache_dir: None is `xftrain` under `$XDG_CACHE_HOME`, else under `~/.cache`.

    Raises:
        ConfigError: the folder cannot be created, or the user has no home folder.
    """
    folder = expand_home("data.cache_dir", cache_dir) if cache_dir else _default_cache_folder()
    if cache_dir:
        refuse_escaping_path(folder, f"data.cache_dir={one_line(cache_dir)}")
    folder = Path(os.path.abspath(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(
            f"data.cache_dir must be a folder or a place to make one, got {str(folder)!r} "
            f"({getattr(error, 'strerror', None) or error}); choose another."
        ) from error
    return folder


def _default_cache_folder() -> Path:
    variable = "XDG_CACHE_HOME"
    if named := os.environ.get(variable):
        if (home := expand_home(variable, named)).is_absolute():
            return home / "xftrain"
        log.warning("%s", ignored_variable(variable, named))
    try:
        return expand_home("data.cache_dir", "~/.cache/xftrain")
    except ConfigError as error:  # for example in a container, whose user has no passwd entry
        raise ConfigError(
            "data.cache_dir must be set to a folder for token files, because this user has no home "
            f"folder to keep them in (HOME is {os.environ.get('HOME')!r}); {variable} will do, too."
        ) from error


@contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Holds a lock that excludes other processes; yields false if the file system has no locks.

    Args:
        path: path of the lock file.

    Raises:
        ConfigError: the folder cannot be written, or the lock is not a regular file or is another
            user's.
    """
    try:
        file = open_plain(path, "ab")
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir must be a folder that this user may write, got {str(path.parent)!r} "
            f"({error.strerror}); choose another."
        ) from error
    with file:
        if not is_owner(os.fstat(file.fileno()), path.parent):
            raise ConfigError(
                f"data.cache_dir: the lock {str(path)!r} is another user's, who could block "
                "this one; remove it or choose another data.cache_dir."
            )
        with suppress(OSError):  # the file system has no permissions
            os.fchmod(file.fileno(), 0o600)  # so that no other user can hold the lock
        yield _locked(file)


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("data.path: waiting for another process that prepares the same text")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def is_own_folder(folder: Path) -> bool:
    """Whether a folder of token files exists and belongs to this user.

    Raises:
        ConfigError: it is a link or a file, or belongs to another user.
    """
    try:
        status = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode) or not is_owner(status, folder.parent):
        raise ConfigError(
            f"data.cache_dir: {str(folder)!r} must be a folder that this user has made, and is a "
            "link, a file or another user's; remove it or choose another data.cache_dir."
        )
    return True


def is_owner(status: os.stat_result, folder: Path) -> bool:
    """Whether a file or folder belongs to this user.

    Args:
        status: the file's `os.stat` result.
        folder: the folder that it is in.
    """
    return status.st_uid == os.geteuid() or status.st_uid == _owner_of_new_files(folder)


def _owner_of_new_files(folder: Path) -> int:
    """The owner id of new files, which on some network drives is not the id of this user."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError:
        return os.geteuid()

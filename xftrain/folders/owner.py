"""Checks whether other users can write to a folder, where they could add links later."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from xftrain.utils.files import real_path


def writable_by_other_users(folder: Path, probe: Path) -> str | None:
    """Describes the first folder, of this one and its parents, that other users can write to.

    Folders with the sticky bit, such as `/tmp`, and those of root are trusted, and so are groups,
    which exist to share folders.

    Args:
        folder: an existing folder.
        probe: a file that this process has just made in it. If everyone can write to that file,
            the file system has no permissions, and None is returned.
    """
    top = real_path(folder)
    if top is None:
        return None
    try:
        if probe.stat().st_mode & stat.S_IWOTH:
            return None
        for place in (top, *top.parents):
            status = place.stat()
            if status.st_uid not in (os.geteuid(), probe.stat().st_uid, 0) and _is_user(status):
                return f"{place} belongs to another user"
            if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
                return f"everybody can write to {place}"
    except OSError:
        return None
    return None


def _is_user(status: os.stat_result) -> bool:
    """Whether the id is a known user; in a container, the owner of a folder often is not."""
    if os.geteuid() != 0:
        return True
    try:
        pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    return True

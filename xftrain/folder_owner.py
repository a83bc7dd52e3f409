"""Who else can write to a folder: links are looked for once, and could be made afterwards."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from xftrain.files import real_path


def written_by_others(folder: Path, probe: Path) -> str | None:
    """A clause on the first folder, of this one and those above it, that others can write to.

    A folder with the sticky bit is left out, as `/tmp`, and what belongs to root. Groups are
    trusted, as people share folders by them.

    Args:
        folder: exists.
        probe: a file that this process has just made in it. Where anybody may write to that, the
            file system knows no permissions, and nothing can be said.
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
    """Whether there is such a user; in a container the owner of a folder often is none."""
    if os.geteuid() != 0:
        return True
    try:
        pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    return True

"""The files beside a SQLite database that a URL names, which may be anyone's."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from xftrain.errors import ConfigError

_URL = re.compile(r"sqlite(?:\+\w+)?:///(?:file:)?([^?]*)")
_BESIDE = ("", "-journal", "-wal", "-shm")
# The end of a journal that belongs to a transaction over several databases, and names the file
# that lists them: https://www.sqlite.org/fileformat.html#the_super_journal
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")


def refuse_foreign_files(url: str, key: str) -> None:
    """Refuse a database whose journal could change another file, or that is no file at all.

    SQLite plays a journal back as soon as it reads the database, and deletes the file that the
    journal names. No database of one program alone has such a name in its journal.

    Args:
        url: of SQLAlchemy, as `sqlite:///search.db`; others are left alone.
        key: the override that gives it, for the message.

    Raises:
        ConfigError: the first such file.
    """
    if not (match := _URL.match(url)) or match[1] in ("", ":memory:"):
        return
    database = os.path.realpath(match[1])
    for ending in _BESIDE:
        path = Path(database + ending)
        try:
            status = path.lstat()
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(
                f"{key}={url} needs plain files, and {path} is none: remove it, or choose another "
                "database."
            )
        if ending == "-journal" and _end(path) == _SUPER_JOURNAL:
            raise ConfigError(
                f"{key}={url} has a journal that names a file to be deleted, {path}, which no "
                "search and no tracker writes: remove it, or choose another database."
            )


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_SUPER_JOURNAL)))
        return file.read()

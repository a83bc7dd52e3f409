"""Refuses untrusted SQLite databases that would do more than hold rows."""

from __future__ import annotations

import re
import sqlite3
import stat
from collections.abc import Set
from contextlib import closing
from pathlib import Path

from xftrain.errors import ConfigError
from xftrain.printable import one_line

_URL = re.compile(r"sqlite(?:\+\w+)?:///(?:file:)?([^?]*)")
_BESIDE = ("", "-journal", "-wal", "-shm")
# The end of the journal of a transaction over several databases, which names a super-journal:
# https://www.sqlite.org/fileformat.html#the_super_journal
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
# A trigger that can only reject a row; MLflow has one.
_REFUSES = re.compile(
    r"create trigger \w+ before (insert|update|delete) on \w+( for each row)?( when [\w .!=<>]+)? "
    r"begin select raise\(abort, '[^']*'\); end",
    re.ASCII | re.IGNORECASE,
).fullmatch
_BUSY_S = 10.0  # time for another process to release its lock


def database_of(url: str) -> Path | None:
    """The file of an SQLAlchemy URL such as `sqlite:///search.db`; None if it names no file."""
    match = _URL.match(url)
    return None if not match or match[1] in ("", ":memory:") else Path(match[1])


def refuse_foreign_database(url: str, key: str, tables: Set[str]) -> None:
    """Refuse a database that does more than hold rows of the expected tables.

    SQLite replays a journal as soon as it reads the database, and deletes the super-journal that
    the journal names, which no database of a single program has. Triggers and views execute SQL
    of their author. Through a link, tables would be created in another database.

    Args:
        url: an SQLAlchemy URL; those of other databases than SQLite are not checked.
        key: the override that holds the URL, for the message.
        tables: table names, at least one of which a non-empty database must have.

    Raises:
        ConfigError: says why the database is refused.
    """
    database = database_of(url)
    if database is None:
        return
    try:
        _refuse_files(database, f"{key}={one_line(url)}")
        if not database.exists():
            return
        with closing(sqlite3.connect(database, timeout=_BUSY_S)) as connection:
            connection.execute("pragma trusted_schema = off")
            found = connection.execute("select type, name, sql from sqlite_master").fetchall()
    except ConfigError:
        raise
    except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(
            f"{key}={one_line(url)} cannot be opened ({one_line(str(error))}); a file is named as "
            "in sqlite:///search.db."
        ) from error
    code = [
        f"the {kind} {one_line(name)}"
        for kind, name, sql in found
        if kind in ("trigger", "view") and not _REFUSES(" ".join(sql.split()))
    ]
    if code:
        raise ConfigError(
            f"{key}={one_line(url)} has {code[0]}, which xftrain never creates and which would "
            "run with every row: choose another database."
        )
    if found and not tables & {name for kind, name, _ in found if kind == "table"}:
        raise ConfigError(
            f"{key}={one_line(url)} is a database of something else: choose another one."
        )


def _refuse_files(database: Path, named: str) -> None:
    for ending in _BESIDE:
        path = Path(f"{database}{ending}")
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(
                f"{named} needs plain files, and {path} is none: name the file itself, remove it, "
                "or choose another database."
            )
        if ending == "-journal" and _end(path) == _SUPER_JOURNAL:
            raise ConfigError(
                f"{named} has a journal that names a file to be deleted, {path}, which no search "
                "and no tracker writes: remove it, or choose another database."
            )


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_SUPER_JOURNAL)))
        return file.read()

"""Refuses untrusted SQLite databases that would do more than hold rows."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from secrets import token_hex

from xftrain.errors import ConfigError
from xftrain.folders.seal import has_valid_seal, sealed
from xftrain.utils.files import read_json, refuse_escaping_path, write_json
from xftrain.utils.printable import one_line

_URL = re.compile(r"sqlite(?:\+\w+)?:///(?:file:)?([^?]*)")
_FILE_ENDINGS = ("", "-journal", "-wal", "-shm")
# The end of the journal of a transaction over several databases, which names a super-journal:
# https://www.sqlite.org/fileformat.html#the_super_journal
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
# A table, an index, or a trigger that can only refuse a row, such as MLflow's.
_HARMLESS = re.compile(
    r"create (table|(unique )?index) .*|"
    r"create trigger \w+ before (insert|update|delete) on \w+( for each row)?( when [\w .!=<>]+)? "
    r"begin select raise\(abort, '[^']*'\); end",
    re.ASCII | re.IGNORECASE,
).fullmatch
_BUSY_S = 10.0  # time for another process to release its lock


def database_of(url: str) -> Path | None:
    """The file of an SQLAlchemy URL such as `sqlite:///search.db`; None if it names no file."""
    match = _URL.match(url)
    return None if not match or match[1] in ("", ":memory:") else Path(match[1])


def create_or_check_database(url: str, key: str) -> None:
    """Creates the database of a URL, or refuses one that this user's xftrain has not created.

    A database holds more than results: queued trials, paths of files to write, and triggers, which
    run SQL. SQLite replays a journal as soon as it reads the database, and deletes the file that
    the journal names. So a database that is created here gets a seal beside it.

    Args:
        url: an SQLAlchemy URL; databases other than SQLite are not checked.
        key: the override that gives it, for the message.

    Raises:
        ConfigError: says why the database is refused.
    """
    database, named = database_of(url), f"{key}={one_line(url)}"
    if database is None:
        return
    try:
        refuse_escaping_path(database.parent, named)
        _refuse_files(database, named)
        if not database.exists():
            _make(database)
            return
        record = read_json(_seal_of(database))
        own = {"database": database.name, "inode": database.stat().st_ino}
        is_own = record is not None and own.items() <= record.items()
        if not is_own or not has_valid_seal(record or {}, database.absolute().parent):
            raise ConfigError(
                f"{named} was not made by this user's xftrain on this machine and in this folder, "
                "and a database can do more than hold rows: choose a new file, or a server."
            )
        with closing(sqlite3.connect(database, timeout=_BUSY_S)) as connection:
            connection.execute("pragma trusted_schema = off")
            found = connection.execute("select name, sql from sqlite_master").fetchall()
    except ConfigError:
        raise
    except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(
            f"{named} cannot be opened ({one_line(str(error))}); a file is named as in "
            "sqlite:///search.db."
        ) from error
    for name, sql in found:
        if sql is not None and not _HARMLESS(" ".join(sql.split())):
            raise ConfigError(
                f"{named} has {one_line(str(name))}, which is neither a table nor an index: "
                "choose a new file."
            )


def _seal_of(database: Path) -> Path:
    return database.with_name(f".{database.name}.seal")


def _make(database: Path) -> None:
    """Creates an empty database after its seal, since two processes may create it at once."""
    folder = database.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    partial = database.with_name(f".{database.name}.{token_hex(8)}.partial")
    partial.touch(mode=0o600, exist_ok=False)
    try:
        record = {"database": database.name, "inode": partial.stat().st_ino}
        write_json(sealed(record, folder), _seal_of(database))
        os.link(partial, database)
    finally:
        partial.unlink()


def _refuse_files(database: Path, named: str) -> None:
    for ending in _FILE_ENDINGS:
        path = Path(f"{database}{ending}")
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode) or (ending and not os.path.lexists(database)):
            raise ConfigError(
                f"{named} needs plain files, and {path} is not one, or belongs to no database: "
                "name the file itself, remove it, or choose another database."
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

"""A database that a URL names changes no other file, whatever lies beside it."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

import pytest

from tests.training.stand_ins import stand_in_for_mlflow
from xftrain.errors import ConfigError
from xftrain.sqlite_files import refuse_foreign_files
from xftrain.sweep_checks import _check_study
from xftrain.training.loggers.mlflow import MLflow

PAGE, MAGIC = 4096, bytes.fromhex("d9d505f920a163d7")


def _with_journal(database: Path, victim: Path) -> str:
    """A database with a journal after whose playback SQLite deletes the victim."""
    with sqlite3.connect(database) as connection:
        connection.execute("create table t(x)")
    connection.close()
    victim.write_text("precious")
    name = str(victim).encode()
    header = MAGIC + struct.pack(">IIIII", 0, 1234, database.stat().st_size // PAGE, 512, PAGE)
    record = struct.pack(">I", 0x40000000 // PAGE + 1) + name
    Path(f"{database}-journal").write_bytes(
        header.ljust(512, b"\0") + record + struct.pack(">II", len(name), sum(name)) + MAGIC
    )
    return f"sqlite:///{database}"


def test_sqlite_deletes_what_such_a_journal_names(tmp_path: Path) -> None:
    # or the tests below would prove nothing
    _with_journal(tmp_path / "a.db", tmp_path / "victim")
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("select * from t")
    connection.close()
    assert not (tmp_path / "victim").exists()


def test_neither_a_search_nor_a_tracker_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _with_journal(tmp_path / "a.db", tmp_path / "victim")
    with pytest.raises(ConfigError, match="hydra.sweeper.storage=.* names a file to be deleted"):
        _check_study(url, "study", {})
    stand_in_for_mlflow(monkeypatch)
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="logger.mlflow.tracking_uri=.* names a file to be"):
        MLflow(tmp_path / "run", tracking_uri=url).begin({})
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("ending", ["", "-journal", "-wal", "-shm"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, ending: str) -> None:
    os.mkfifo(f"{tmp_path}/a.db{ending}")
    with pytest.raises(ConfigError, match=f"needs plain files, and {tmp_path}/a.db{ending} is"):
        refuse_foreign_files(f"sqlite:///{tmp_path}/a.db", "key")


def test_a_link_to_a_database_is_followed_as_sqlite_does(tmp_path: Path) -> None:
    _with_journal(tmp_path / "a.db", tmp_path / "victim")
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(ConfigError, match="names a file to be deleted"):
        refuse_foreign_files(f"sqlite:///file:{tmp_path}/link.db?uri=true", "key")


def test_what_a_killed_search_leaves_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"")
    (tmp_path / "a.db-journal").write_bytes(MAGIC + bytes(600))
    (tmp_path / "a.db-wal").write_bytes(b"")
    refuse_foreign_files(f"sqlite:///{tmp_path}/a.db", "key")
    for url in ("sqlite:///:memory:", "sqlite://", "postgresql://host/db", "http://host"):
        refuse_foreign_files(url, "key")

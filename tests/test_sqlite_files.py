"""A database that a URL names changes no other file, whatever lies beside it."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

import pytest

from tests.training.stand_ins import stand_in_for_mlflow
from xftrain.errors import ConfigError, RunError
from xftrain.sqlite_files import refuse_foreign_database
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
        refuse_foreign_database(f"sqlite:///{tmp_path}/a.db", "key", {"t"})


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table t(x)")
    connection.close()
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(ConfigError, match="needs plain files"):
        refuse_foreign_database(f"sqlite:///file:{tmp_path}/link.db?uri=true", "key", {"t"})


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("create trigger evil after insert on t begin delete from t; end", "has the trigger evil"),
        ("create view evil as select 1", "has the view evil"),
        ("drop table t; create table cookies(x)", "is a database of something else"),
    ],
)
def test_a_database_that_does_more_than_hold_rows_is_refused(
    tmp_path: Path, statement: str, said: str
) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.executescript(f"create table t(x); {statement}")
    connection.close()
    with pytest.raises(ConfigError, match=said):
        refuse_foreign_database(f"sqlite:///{tmp_path}/a.db", "key", {"t"})


def test_a_trigger_that_refuses_rows_is_fine(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.executescript(
            "create table t(x); create trigger keep before update on t\nfor each row\n"
            "when old.x != new.x or old.x = 1\nbegin\n    select raise(abort, 'x stays');\nend"
        )
    connection.close()
    refuse_foreign_database(f"sqlite:///{tmp_path}/a.db", "key", {"t"})


def test_what_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigError, match="cannot be opened .*not a database"):
        refuse_foreign_database(f"sqlite:///{tmp_path}/a.db", "key", {"t"})


def test_what_a_killed_search_leaves_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"")
    (tmp_path / "a.db-journal").write_bytes(MAGIC + bytes(600))
    refuse_foreign_database(f"sqlite:///{tmp_path}/a.db", "key", {"t"})
    for url in ("sqlite:///:memory:", "sqlite://", "postgresql://host/db", "http://host"):
        refuse_foreign_database(url, "key", {"t"})


def test_a_waiting_trial_of_a_study_is_refused(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path}/search.db"
    study = optuna.create_study(storage=url, study_name="xftrain")
    _check_study(url, "xftrain", {})
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.enqueue_trial({"+callbacks.evil": "{_target_:numpy.load}"})
    with pytest.raises(ConfigError, match="has a trial that waits to be run"):
        _check_study(url, "xftrain", {})


@pytest.mark.parametrize("place", ["s3://bucket/x", "file:///elsewhere", "/elsewhere"])
def test_an_experiment_that_keeps_its_texts_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    seen = stand_in_for_mlflow(monkeypatch)
    seen.settings |= {"experiment": "xftrain", "artifacts": place}
    with pytest.raises(RunError, match="keeps its texts in .*outside the folder of its database"):
        MLflow(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").begin({})


def test_a_run_folder_whose_name_a_url_would_cut_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_mlflow(monkeypatch)
    (tmp_path / "run?v=2").mkdir()
    with pytest.raises(RunError, match=r"whose name has [?], which means something else"):
        MLflow(tmp_path / "run?v=2").begin({})

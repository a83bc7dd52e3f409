"""A database that a URL names changes no other file, whatever lies beside it."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from pathlib import Path

import pytest

from tests.train.stand_ins import stand_in_for_mlflow
from xftrain.errors import ConfigError, RunError
from xftrain.folders.sqlite_files import create_or_check_database
from xftrain.logger.mlflow import MLflow
from xftrain.multirun.checks import _check_study

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
    with pytest.raises(ConfigError, match="hydra.sweeper.storage=.* (names a file|was not made)"):
        _check_study(url, "study", {})
    stand_in_for_mlflow(monkeypatch)
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="logger.mlflow.tracking_uri=.* names a file to be"):
        MLflow(tmp_path / "run", tracking_uri=url).start_run({})
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database of this user's with a table."""
    url = f"sqlite:///{tmp_path}/a.db"
    create_or_check_database(url, "key")
    _execute(tmp_path / "a.db", "create table t(x); create unique index i on t(x)")
    return url


def _execute(database: Path, statements: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.executescript(statements)
    connection.close()


def test_a_database_that_was_made_here_is_used_again(url: str, tmp_path: Path) -> None:
    create_or_check_database(url, "key")
    create_or_check_database(f"sqlite:///file:{tmp_path}/a.db?uri=true", "key")
    assert not list(tmp_path.glob("*.partial")) and (tmp_path / ".a.db.seal").is_file()
    for other in ("sqlite:///:memory:", "sqlite://", "postgresql://host/db", "http://host"):
        create_or_check_database(other, "key")


@pytest.mark.parametrize("kind", ["foreign", "copied", "replaced", "changed seal"])
def test_any_other_database_is_refused(url: str, tmp_path: Path, kind: str) -> None:
    there = tmp_path / "a.db"
    if kind == "foreign":
        (tmp_path / ".a.db.seal").unlink()
    elif kind == "copied":
        (tmp_path / "b").mkdir()
        for name in ("a.db", ".a.db.seal"):
            (tmp_path / "b" / name).write_bytes((tmp_path / name).read_bytes())
        url = f"sqlite:///{tmp_path}/b/a.db"
    elif kind == "replaced":
        content = there.read_bytes()
        there.rename(tmp_path / "old.db")
        there.write_bytes(content)
    else:
        seal = json.loads((tmp_path / ".a.db.seal").read_text())
        (tmp_path / ".a.db.seal").write_text(json.dumps(seal | {"seal": "0" * 64}))
    with pytest.raises(ConfigError, match="was not made by this user's xftrain"):
        create_or_check_database(url, "key")


@pytest.mark.parametrize("ending", ["", "-journal", "-wal", "-shm"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, ending: str) -> None:
    os.mkfifo(f"{tmp_path}/a.db{ending}")
    with pytest.raises(ConfigError, match=f"needs plain files, and {tmp_path}/a.db{ending} is"):
        create_or_check_database(f"sqlite:///{tmp_path}/a.db", "key")


def test_a_journal_without_its_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db-journal").write_bytes(MAGIC)
    with pytest.raises(ConfigError, match="belongs to no database"):
        create_or_check_database(f"sqlite:///{tmp_path}/a.db", "key")


def test_no_link_is_followed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(ConfigError, match="needs plain files"):
        create_or_check_database(f"sqlite:///{tmp_path}/link.db", "key")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("outputs").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads out of the working folder by a link"):
        create_or_check_database("sqlite:///outputs/new.db", "key")


@pytest.mark.parametrize(
    "statement",
    [
        "create trigger evil after insert on t begin delete from t; end",
        "create view evil as select 1",
        # its type is text that the author writes, and SQLite looks at the statement
        "create trigger evil after insert on t begin delete from t; end; "
        "pragma writable_schema = on; "
        "update sqlite_master set type = 'TRIGGER' where name = 'evil'",
    ],
)
def test_a_database_that_does_more_than_hold_rows_is_refused(
    url: str, tmp_path: Path, statement: str
) -> None:
    # as a journal that somebody has put beside it would make it
    _execute(tmp_path / "a.db", statement)
    with pytest.raises(ConfigError, match="has evil, which is neither a table nor an index"):
        create_or_check_database(url, "key")


def test_a_trigger_that_refuses_rows_is_fine(url: str, tmp_path: Path) -> None:
    _execute(
        tmp_path / "a.db",
        "create trigger keep before update on t\nfor each row\n"
        "when old.x != new.x or old.x = 1\nbegin\n    select raise(abort, 'x stays');\nend",
    )
    create_or_check_database(url, "key")


def test_what_a_killed_search_leaves_is_no_reason(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.db-journal").write_bytes(bytes(600))
    create_or_check_database(url, "key")


def test_a_waiting_trial_of_a_study_is_refused(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path}/search.db"
    _check_study(url, "xftrain", {})
    study = optuna.create_study(storage=url, study_name="xftrain")
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.enqueue_trial({"+callbacks.evil": "{_target_:numpy.load}"})
    with pytest.raises(ConfigError, match="has a trial that waits to be run"):
        _check_study(url, "xftrain", {})


@pytest.mark.parametrize("place", ["s3://bucket/x", "file:///a/%2e%2e/b", "/elsewhere"])
def test_a_run_whose_texts_would_be_kept_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    seen = stand_in_for_mlflow(monkeypatch)
    seen.settings["artifact_uri"] = place
    with pytest.raises(RunError, match="the database keeps the texts of the run in .* instead of"):
        MLflow(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").start_run({})


def test_a_run_folder_whose_name_a_url_would_cut_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_mlflow(monkeypatch)
    (tmp_path / "run?v=2").mkdir()
    with pytest.raises(RunError, match=r"whose name has [?], which means something else"):
        MLflow(tmp_path / "run?v=2").start_run({})

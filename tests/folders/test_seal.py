"""A record is trusted where this user's own xftrain wrote it, and nowhere else."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xftrain.folders.seal import has_valid_seal, sealed

RECORD = {"config_name": "train", "overrides": ["seq=8,16"]}
HERE = Path(__file__).parent


@pytest.fixture
def key(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "xftrain" / "key"


def test_a_seal_is_of_this_record_and_this_key(key, tmp_path, monkeypatch):
    record = sealed(RECORD, HERE)

    assert has_valid_seal(record, HERE) and {**RECORD, "seal": record["seal"]} == record
    assert not has_valid_seal(RECORD, HERE)
    assert not has_valid_seal({**record, "overrides": ["seq=8,32"]}, HERE)
    assert not has_valid_seal({**record, "more": 1}, HERE)
    for seal in (None, 1, "", "\ud800", record["seal"][:-1]):
        assert not has_valid_seal({**record, "seal": seal}, HERE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another machine"))
    assert not has_valid_seal(record, HERE)
    assert not (tmp_path / "of another machine").exists()  # looking makes nothing
    assert sealed(RECORD, HERE) != record


@pytest.mark.usefixtures("key")
def test_a_seal_is_of_one_folder(tmp_path, monkeypatch):
    # who got a copy of a sweep could hand its record back beside results of their own
    mine, copy = tmp_path / "mine", tmp_path / "copy"
    mine.mkdir()
    record = sealed(RECORD, mine)
    (tmp_path / "link").symlink_to(mine)
    monkeypatch.chdir(mine)
    for same in (mine, tmp_path / "link", Path(), Path("../mine")):
        assert has_valid_seal(record, same)
    copy.mkdir()
    assert not has_valid_seal(record, copy) and not has_valid_seal(record, mine / "absent")
    mine.rename(tmp_path / "moved")
    assert not has_valid_seal(record, tmp_path / "moved")
    copy.rename(mine)  # another folder in the old place
    assert not has_valid_seal(record, mine)
    assert sealed(RECORD, tmp_path / "absent") == RECORD


def test_the_key_is_the_users_alone(key):
    sealed(RECORD, HERE)
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    assert [path.name for path in key.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("spoil", ["readable", "short", "link", "folder", "fifo"])
def test_a_key_that_others_may_know_seals_nothing(key, tmp_path, spoil):
    record, content = sealed(RECORD, HERE), key.read_bytes()
    if spoil == "readable":
        key.chmod(0o644)
    elif spoil == "short":
        key.write_bytes(content[:-1])
    else:
        key.unlink()
        if spoil == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            key.symlink_to(tmp_path / "elsewhere")
        elif spoil == "fifo":
            os.mkfifo(key, 0o600)
        else:
            key.mkdir()
    assert not has_valid_seal(record, HERE) and sealed(RECORD, HERE) == RECORD


@pytest.mark.parametrize("home", [None, "", "relative", "/dev/null/nowhere"])
def test_without_a_home_folder_nothing_is_sealed(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "also/relative")
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    assert sealed(RECORD, HERE) == RECORD and not has_valid_seal(RECORD, HERE)
    assert list(tmp_path.iterdir()) == []


def test_below_the_home_folder_where_no_other_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert has_valid_seal(sealed(RECORD, HERE), HERE)
    assert (tmp_path / ".local" / "state" / "xftrain" / "key").is_file()


def test_processes_that_start_together_have_one_key(key):
    with ThreadPoolExecutor(8) as pool:
        seals = {record["seal"] for record in pool.map(sealed, [RECORD] * 16, [HERE] * 16)}
    assert len(seals) == 1

"""Whoever else can write to a run's folder is named."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from xftrain.folders import run_folder
from xftrain.folders.owner import writable_by_other_users
from xftrain.folders.run_folder import RunFolder


def said(folder: Path) -> str | None:
    (folder / "probe").touch(0o644)
    return writable_by_other_users(folder, folder / "probe")


def test_a_folder_of_this_user_and_a_temporary_one_are_fine(tmp_path: Path) -> None:
    assert said(tmp_path) is None
    tmp_path.chmod(0o1777)
    assert said(tmp_path) is None
    tmp_path.chmod(0o775)  # of a group
    assert said(tmp_path) is None


def test_a_folder_that_everybody_can_write_to_is_named_also_above(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o777)
    assert said(tmp_path / "run") == f"everybody can write to {tmp_path}"
    (tmp_path / "run" / "probe").chmod(0o777)  # as of all files of a drive without permissions
    assert writable_by_other_users(tmp_path / "run", tmp_path / "run" / "probe") is None


def test_a_folder_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe").touch(0o644)
    owner, stat = tmp_path.stat().st_uid, Path.stat

    def other(path: Path) -> os.stat_result:
        found = stat(path)
        uid = 12345 if path == tmp_path else found.st_uid
        return os.stat_result((*found[:4], uid, *found[5:10]))

    monkeypatch.setattr(Path, "stat", other)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: uid)
    assert (
        writable_by_other_users(tmp_path, tmp_path / "probe")
        == f"{tmp_path} belongs to another user"
    )
    # root of a container, in which there is no such user
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {0: "root", owner: "me"}[uid])
    assert writable_by_other_users(tmp_path, tmp_path / "probe") is None


def test_a_run_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o777)
    RunFolder(tmp_path).start_new_run()
    (warned,) = [r.getMessage() for r in caplog.records if r.name == run_folder.__name__]
    assert warned.startswith(f"everybody can write to {tmp_path}: whoever can write there could")

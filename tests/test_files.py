"""Folders and files that processes make side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xftrain.files import new_folder


def test_each_of_many_at_once_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_folder, [tmp_path / "2026" / "now"] * 24))
    assert len(set(made)) == 24 and all(folder.is_dir() for folder in made)
    assert made[0].parent == tmp_path / "2026"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        new_folder(tmp_path / "file" / "2026" / "now")
    (tmp_path / "outputs").symlink_to(tmp_path / "a disk that is not mounted")
    with pytest.raises(FileExistsError):
        new_folder(tmp_path / "outputs" / "2026" / "now")

"""Hydra's own files in a run's folder, to which others may have been added."""

from __future__ import annotations

from pathlib import Path

import pytest

from xftrain.errors import ConfigError
from xftrain.launch.hydra_files import hide_in_files


@pytest.mark.parametrize("name", ["config.yaml", "hydra.yaml", "overrides.yaml"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, is_folder: bool) -> None:
    if is_folder:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=f"/{name} cannot be read .*remove it, or choose"):
        hide_in_files(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "link", "bytes"])
def test_a_file_of_another_name_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nothing")
    else:
        path.write_bytes(b"\xff\xfe")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    hide_in_files(tmp_path)
    assert path.is_symlink() or path.exists()

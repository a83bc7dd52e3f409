"""torch compiles into a folder that nobody else can write to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch._inductor.config as inductor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from xftrain.utils.compile_cache import use_private_compile_cache


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where torch would compile."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with inductor.patch("cpp_cache_precompile_headers", True):
        yield Path(default_cache_dir())


def chosen() -> Path:
    use_private_compile_cache()
    return Path(os.environ.pop("TORCHINDUCTOR_CACHE_DIR"))


def test_the_usual_folder_is_made_for_this_user_alone(usual: Path) -> None:
    assert chosen() == usual
    assert usual.stat().st_mode & 0o777 == 0o700
    usual.chmod(0o755)
    assert chosen() == usual  # as torch itself makes it


@pytest.mark.parametrize("found", ["writable", "a group's", "a link", "a file", "another's"])
def test_a_folder_that_others_can_write_to_is_left_alone(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    if found == "a link":
        (tmp_path / "elsewhere").mkdir()
        usual.symlink_to(tmp_path / "elsewhere")
    elif found == "a file":
        usual.touch()
    else:
        usual.mkdir()
        usual.chmod({"writable": 0o777, "a group's": 0o775}.get(found, 0o755))
    if found == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        folder = chosen()
        assert folder.parent == tmp_path and folder.name.startswith("torchinductor_")
        assert folder != usual
    else:
        assert chosen() == tmp_path / "cache" / "xftrain" / "torchinductor"


def test_a_variable_that_torch_has_set_is_no_choice_of_the_users(
    usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual.mkdir()
    usual.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(usual))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(usual / "triton" / "0"))
    assert chosen() == tmp_path / "cache" / "xftrain" / "torchinductor"
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not inductor.cpp_cache_precompile_headers


def test_the_users_own_choice_is_kept(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/anywhere")
    use_private_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/anywhere" and not usual.exists()

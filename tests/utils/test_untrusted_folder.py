"""An untrusted working folder: empty entries of search paths, and runs by the Python API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from xftrain.config import compose as config
from xftrain.data.tokens.cache_folder import cache_folder
from xftrain.errors import ConfigError
from xftrain.launch import dispatch
from xftrain.utils import compilers, plot_settings, search_path

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", search_path._SEARCH_PATHS)
@pytest.mark.parametrize(
    ("before", "after"),
    [(":/a", "/a"), ("/a:", "/a"), ("/a::/b", "/a:/b"), (":", None), ("/a:.", "/a:."), ("", "")],
)
def test_an_empty_entry_is_removed(
    monkeypatch: pytest.MonkeyPatch, name: str, before: str, after: str | None
) -> None:
    monkeypatch.setenv(name, before)
    search_path.leave_out_empty_entries()
    assert os.environ.get(name) == after


@pytest.mark.parametrize(
    ("variable", "is_left"), [(":/a", False), ("/a:", False), (":{here}", True), ("/a", True)]
)
def test_python_does_not_look_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, is_left: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", variable.format(here=tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/a", str(ROOT)])
    search_path.leave_out_empty_entries()
    assert sys.path == [str(tmp_path)] * is_left + ["/a", str(ROOT)]


def test_a_checkout_that_is_found_there_alone_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", ":/a")
    monkeypatch.setattr(sys, "path", [str(ROOT), "/a"])
    search_path.leave_out_empty_entries()
    assert sys.path == ["/a", str(ROOT)]


def test_a_run_by_the_python_api_is_protected_like_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*_: object) -> dict[str, Any]:
        kinds = plot_settings._Finder | compilers._Finder
        finders = [type(finder) for finder in sys.meta_path if isinstance(finder, kinds)]
        return {"safe": os.environ.get("PYTHONSAFEPATH"), "finders": finders}

    kinds = plot_settings._Finder | compilers._Finder
    others = [finder for finder in sys.meta_path if not isinstance(finder, kinds)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.setattr(dispatch, "command_of", lambda _: record)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    found = dispatch.run(config.compose("max_steps=1"), tmp_path)
    assert found["safe"] == "1" and len(found["finders"]) == 2
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize("place", ["link", "link/below", "sub/../link"])
def test_token_files_are_not_written_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for name in ("victim", "clone/sub", "clone/real"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clone")
    Path("link").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match=r"data.cache_dir=.* leads out of the working folder"):
        cache_folder(place)
    assert not list((tmp_path / "victim").iterdir())
    Path("inside").symlink_to("real")
    for allowed in ("inside", "new", "../elsewhere", str(tmp_path / "clone" / "link")):
        assert cache_folder(allowed).is_dir()

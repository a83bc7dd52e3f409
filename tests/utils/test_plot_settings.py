"""A `matplotlibrc` in the working folder, which may be anyone's, is not read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended
from xftrain.benchmark import worker
from xftrain.utils import plot_settings

ROOT = Path(__file__).parents[2]
CODE = """
import os, sys
from xftrain.utils import plot_settings

plot_settings.ignore_working_folder()
here = os.getcwd()
import matplotlib

assert os.getcwd() == here and matplotlib.__spec__.loader is matplotlib.__loader__
print(matplotlib.rcParams["savefig.dpi"], os.environ.get("MATPLOTLIBRC"))
"""


def _imported(folder: Path, **variables: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_a_fifo_in_the_working_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")
    assert _imported(tmp_path) == "figure None"


def test_the_settings_that_the_user_names_count(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("savefig.dpi: 6000\n")
    (tmp_path / "mine").write_text("savefig.dpi: 70\n")
    assert _imported(tmp_path, MATPLOTLIBRC="mine") == "70.0 mine"


def test_a_backend_that_a_notebook_has_set_and_that_is_not_installed_ends_no_run(tmp_path) -> None:
    for name in ("module://matplotlib_inline.backend_inline", "module://no_such_package.backend"):
        assert _imported(tmp_path, MPLBACKEND=name).startswith("figure")


def test_a_backend_that_does_not_exist_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ConfigError: MPLBACKEND=nonsense is refused"):
        _imported(tmp_path, MPLBACKEND="nonsense")


@pytest.fixture
def _without_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [f for f in sys.meta_path if not isinstance(f, plot_settings._Finder)]
    monkeypatch.setattr(sys, "meta_path", others)


def _finders() -> int:
    return sum(isinstance(finder, plot_settings._Finder) for finder in sys.meta_path)


@pytest.mark.usefixtures("_without_finder")
def test_every_command_leaves_the_file_unread(command: Callable[..., Ended]) -> None:
    for _ in range(2):
        assert command("--version").code == 0
        assert _finders() == 1


@pytest.mark.usefixtures("_without_finder")
def test_the_process_that_measures_leaves_it_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "die_with_parent", lambda _: sys.exit())
    with pytest.raises(SystemExit):
        worker.serve(None, "log", "cpu", False)  # type: ignore[arg-type]
    assert _finders() == 1

"""Compilers that libraries start do not run in the working folder, which may be anyone's."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from xftrain.utils import compilers

# As triton/runtime/build.py of Triton 3.6.
BUILD = """
import os, subprocess

def build(*command):
    return subprocess.check_call(list(command), stdout=subprocess.DEVNULL)
"""
SAYS_WHERE = "import os, sys; open(sys.argv[1], 'w').write(os.getcwd() + ' ' + sys.argv[-1])"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable stand-in for Triton, and an untrusted working folder."""
    place = tmp_path / "site" / "triton" / "runtime"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").touch()
    (place / "__init__.py").touch()
    (place / "build.py").write_text(BUILD)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    others = [finder for finder in sys.meta_path if not isinstance(finder, compilers._Finder)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.syspath_prepend(place.parents[1])
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(foreign)
    yield foreign
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        del sys.modules[name]


@pytest.mark.parametrize("is_imported", [False, True])
def test_triton_builds_its_stub_in_the_root_folder(
    build: Path, tmp_path: Path, is_imported: bool
) -> None:
    if is_imported:
        __import__("triton.runtime.build")
    compilers.leave_working_folder()
    from triton.runtime.build import build as start

    assert start(sys.executable, "-c", SAYS_WHERE, str(tmp_path / "said"), "-Lmine") == 0
    assert (tmp_path / "said").read_text() == f"/ -L{build}/mine"
    assert os.getcwd() == str(build)
    assert sys.modules["triton.runtime.build"].__spec__.loader.get_source(  # type: ignore[union-attr]
        "triton.runtime.build"
    )


@pytest.mark.usefixtures("build")
def test_a_relative_compiler_and_a_chosen_folder_count(tmp_path: Path) -> None:
    os.symlink("/bin/pwd", "cc")
    elsewhere = compilers._SubprocessInRoot()
    assert elsewhere.check_output(["./cc", "-P"], text=True) == "/\n"
    assert elsewhere.run(["pwd"], cwd=tmp_path, capture_output=True).stdout.strip()
    assert elsewhere.DEVNULL == subprocess.DEVNULL


def test_the_variables_that_processes_share_name_the_same_folders(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "cache")
    compilers.leave_working_folder()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(build / "cache")


def test_the_processes_of_torch_that_compile_are_started_there() -> None:
    module = types.ModuleType("torch._inductor.compile_worker.subproc_pool")
    module.subprocess = subprocess  # type: ignore[attr-defined]
    compilers._replace(module)
    assert module.__name__ in compilers._MODULES
    assert module.subprocess.check_output(["pwd"], text=True) == "/\n"


def test_the_modules_still_start_programs_by_that_name() -> None:
    """A new version of torch that starts its processes otherwise would be missed."""
    source = Path(torch.__file__).parent / "_inductor/compile_worker"
    assert "subprocess.Popen(" in (source / "subproc_pool.py").read_text()

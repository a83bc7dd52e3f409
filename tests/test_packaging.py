"""What `pip install .` gives is what the checkout has, `conf/` included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the source archive as a release is, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def _files(folder: Path, suffix: str) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*" + suffix)}


def test_wheel_holds_the_same_options(wheel):
    prefix = "xftrain/conf/"
    inside = {n.removeprefix(prefix): wheel.read(n) for n in wheel.namelist() if prefix in n}
    options = _files(ROOT / "conf", ".yaml")

    assert "model/attn/xformers.yaml" in options
    assert inside == options


def test_wheel_holds_the_same_modules_and_nothing_else(wheel):
    modules = {f"xftrain/{name}" for name in _files(ROOT / "xftrain", ".py")}
    outside_conf = {n for n in wheel.namelist() if not n.startswith("xftrain/conf/")}

    assert "xftrain/interfaces/__init__.py" in modules
    assert {n for n in outside_conf if ".dist-info/" not in n} == modules


def test_wheel_composes_the_same_configuration_as_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    command = [sys.executable, "-m", "xftrain", "--cfg", "job", "model.attn=naive"]

    def printed(path: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(path)}
        process = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    assert "name: naive" in printed(tmp_path / "site")
    assert printed(tmp_path / "site") == printed(ROOT)


def test_wheel_brings_the_command(wheel):
    (entry_points,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    assert "xftrain = xftrain.launch.cli:main" in wheel.read(entry_points).decode()

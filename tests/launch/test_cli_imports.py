"""What a command imports before it answers, and what it leaves to later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xftrain

SLOW_START = """
import io, sys
from contextlib import redirect_stdout

import xftrain

assert {name for name in ("torch", "hydra") if name in sys.modules} == set(), "import xftrain"
from xftrain.launch.cli import main

for argv, code in ((["--help"], 0), (["--cfg", "job", "model.attn=naive"], 0), (["seq=-1"], 2)):
    sys.argv[1:] = [*argv, "hydra.run.dir=run"]
    with redirect_stdout(io.StringIO()) as out:
        try:
            got = main()
        except SystemExit as stop:
            got = stop.code
    assert got == code, (argv, got)
    assert "xformers" in out.getvalue() or "--help" not in argv
    assert "torch" not in sys.modules, argv
"""


IMPORTED = """
import gc
import sys
import types

from xftrain.launch import cli
from xftrain.errors import RunError

ends, notes, kept = sys.argv.pop(), [], []


def command_of(cfg):
    notes.append(("import", gc.isenabled(), gc.get_freeze_count() > 100_000))
    sys.modules["torch"] = types.ModuleType("torch")
    kept.extend([] for _ in range(100_000))
    if ends == "badly":
        raise RunError("torch is broken.")
    return run


def run(cfg, run_dir, checked, reserved):
    kept.extend([] for _ in range(100_000))
    notes.append(("run", gc.isenabled(), gc.get_freeze_count() > 100_000))
    return {"metrics": {}}


cli.command_of = command_of
sys.argv[1:] = ["hydra.run.dir=run"]
assert cli.main() == int(ends == "badly")
assert gc.isenabled()
expected = [("import", False, False), ("run", True, True)]
assert notes == expected[: 1 if ends == "badly" else 2], notes
count = gc.get_freeze_count()
assert cli.main() == int(ends == "badly")
assert gc.isenabled() and gc.get_freeze_count() <= count  # the second 100,000 can be freed
"""


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(xftrain.__file__).parents[1])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_help_a_printed_configuration_and_a_refusal_import_no_torch(tmp_path):
    process = _python(tmp_path, "-c", SLOW_START)

    assert process.returncode == 0, process.stderr
    assert process.stderr == "xftrain: seq must be an integer >= 1, got -1.\n"


def test_the_module_runs_as_a_command(tmp_path):
    process = _python(tmp_path, "-m", "xftrain", "seq=abc")

    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "xftrain: seq must be an integer >= 1, got 'abc'.\n"
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_are_lazy():
    assert {"build_model", "compose", "run"} <= set(dir(xftrain))
    assert xftrain.compose("seq=32").seq == 32
    with pytest.raises(AttributeError, match="'nope'"):
        _ = xftrain.nope


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_what_is_imported_is_left_out_of_searches_for_garbage(tmp_path, ends):
    process = _python(tmp_path, "-c", IMPORTED, ends)
    assert process.returncode == 0, process.stderr

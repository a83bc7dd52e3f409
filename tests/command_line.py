"""Commands in this process, and stand-ins for what they would start."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from xftrain.config.run_config import RunConfig
from xftrain.launch import cli
from xftrain.multirun import jobs as sweeps


class Ended(NamedTuple):
    code: int | str | None
    out: str
    err: str


def one_sentence(ended: Ended, code: int) -> str:
    """What a command said, which is that alone."""
    assert ended.code == code, ended
    assert ended.err.startswith("xftrain: ")
    assert ended.err.endswith("\n") and ended.err.count("\n") == 1
    return ended.err.removeprefix("xftrain: ").rstrip("\n")


class Runner:
    """Stands for `commands.train`: records its arguments and does what the test says."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Path]] = []
        self.errors: dict[int, BaseException] = {}  # by seq

    def run(self, cfg: DictConfig, run_dir: Path, checked: Any, reserved: Any) -> dict[str, Any]:
        assert isinstance(checked, RunConfig)  # so that a run does not check it again
        self.calls.append((cfg.seq, run_dir))
        if cfg.seq in self.errors:
            raise self.errors[cfg.seq]
        return {"metrics": {"val/loss": 0.5}}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    fake = Runner()
    module = types.ModuleType("xftrain.commands.train")
    vars(module)["run"] = fake.run
    monkeypatch.setitem(sys.modules, "xftrain.commands.train", module)
    return fake


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runner: Runner
) -> Iterator[Callable[..., Ended]]:
    """Runs main() in a folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["xftrain", *argv])
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                code = cli.main()
            except SystemExit as stop:
                code = stop.code
        return Ended(code, out.getvalue(), err.getvalue())

    yield run
    assert not GlobalHydra.instance().is_initialized()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for the processes of a sweep's jobs: notes their arguments and leaves a result."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, code: int) -> None:
            self.code = code

        def wait(self) -> int:
            return self.code

    def start(command: list[str], cwd: str, last_words: Path) -> Process:
        started.append(command[3:])
        overrides = [
            word for word in command if re.match(r"(seq|model|optim|hparams_search)", word)
        ]
        (place,) = [word for word in command if word.startswith("hydra.run.dir=")]
        run_dir = Path(str(OverridesParser.create().parse_override(place).value()))
        if "seq=13" in overrides:
            return Process(-9)
        if "seq=14" in overrides:  # it could not even make its folder
            last_words.write_text("the run folder cannot be made.")
            return Process(1)
        failed = "seq=16" in overrides
        result = {
            "status": "failed" if failed else "completed",
            "error": "the disk is full." if failed else None,
            "overrides": overrides,
            "metrics": {"val/loss": None if "seq=15" in overrides else 0.5},  # it was NaN
        }
        (run_dir / "result.json").write_text(json.dumps(result))
        return Process(int(failed))

    monkeypatch.setattr(sweeps, "start", start)
    return started

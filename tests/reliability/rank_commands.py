"""Commands of several ranks, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.train.runs import SMALL

ROOT = Path(__file__).parents[2]


# The package, and what else this process was given to import.
PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH}


TWO = ("trainer=ddp", "data.stop_at_accuracy=null")


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.multi_gpu)])
def place(request: pytest.FixtureRequest) -> str:
    return f"trainer.accelerator={request.param}"


def rank_variables(rank: int, size: int) -> dict[str, str]:
    """The variables that torchrun sets for one of several ranks."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    return {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(size), **place}


def command(run_dir: Path, *overrides: str) -> list[str]:
    small = [one for one in SMALL if not one.startswith("trainer=")]
    words = [sys.executable, "-m", "xftrain", *TWO, *small, f"hydra.run.dir={run_dir}"]
    return [*words, "trainer.val_check_interval=100000", *overrides]


def finished(words: list[str], **changes: Any) -> subprocess.CompletedProcess[str]:
    """The command's end; `changes` are of how it is started. It forks, and so do its ranks."""
    return forked.ended(forked.main, words[3:], **({"env": ENVIRONMENT, "cwd": ROOT} | changes))


def ended(process: subprocess.Popen[str], others: list[int]) -> tuple[int, str]:
    said = process.communicate(timeout=60)[1]
    for pid in others:
        assert not Path(f"/proc/{pid}").exists(), "a rank is left"
    return process.returncode, said

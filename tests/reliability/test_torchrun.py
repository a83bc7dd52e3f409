"""Ranks that torchrun starts are one run with one folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.rank_commands import (
    ENVIRONMENT,
    command,
    finished,
    rank_variables,
)
from tests.train.runs import last, result_of
from xftrain.checkpoint.file import read_checkpoint


def with_torchrun(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    words += ["-m", *command(folder, *overrides)[2:]]
    kept = [word for word in words if "hydra.run.dir" not in word]
    started: dict[str, Any] = {"env": ENVIRONMENT, "cwd": folder, "timeout": 90}
    return subprocess.run(kept, text=True, capture_output=True, **started)


@pytest.mark.long
def test_under_torchrun_one_rank_speaks_and_one_folder_is_left(tmp_path, place):
    ended = with_torchrun(tmp_path, place)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert len(re.findall("configuration, what differs from the defaults:\n", ended.stdout)) == 1
    assert len(re.findall("done in", ended.stdout)) == 1
    (run_dir,) = tmp_path.glob("outputs/*/*")
    assert result_of(run_dir)["status"] == "completed"
    assert read_checkpoint(last(run_dir))["global_step"] == 6


def test_what_torchrun_starts_is_one_run_in_the_folder_of_rank_0(tmp_path):
    def said(rank: int, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**ENVIRONMENT, **rank_variables(rank, 2)}
        return finished([*command(tmp_path / "mine"), *words], cwd=tmp_path, env=environment)

    for rank in (0, 1):
        folder = f"dir: {tmp_path / 'mine'}"
        assert (folder in said(rank, "--cfg", "hydra").stdout) == (rank == 0)
        sweep = said(rank, "-m", "model.ffn=gelu,swiglu")
        assert sweep.returncode == 2
        assert "torchrun starts the ranks of one run, and a sweep" in sweep.stderr
    assert list(tmp_path.iterdir()) == []

"""In a Slurm job, which Lightning finds by its variables, a run resumes what is named alone."""

from __future__ import annotations

import pytest
import torch

from tests.train.runs import last, run, same_weights
from xftrain.checkpoint.file import read_checkpoint

VARIABLES = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "5", "PROCID": "0", "LOCALID": "0"}
VARIABLES |= {"NODEID": "0", "JOB_NODELIST": "localhost"}


@pytest.mark.fault("foreign checkpoint in the run folder")
def test_a_checkpoint_of_lightnings_in_the_run_folder_is_not_taken(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "max_steps=2")
    foreign = read_checkpoint(last(tmp_path / "whole"))
    foreign["state_dict"]["model.head.weight"].fill_(7.0)
    (tmp_path / "run").mkdir()
    torch.save(foreign, tmp_path / "run" / "hpc_ckpt_1.ckpt")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    result = run(tmp_path / "run", "max_steps=2")
    assert same_weights(last(tmp_path / "run"), last(tmp_path / "whole"))
    # the validation at the end would read it as well
    assert result["metrics"]["val/loss"] == whole["metrics"]["val/loss"]

"""torch's profiler is not left on by a run that ends in an error."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from tests.train.runs import run

RUN = ("trainer=cpu", "max_steps=6", "trainer.profiler=pytorch")


class Fails(Callback):
    """Raises an error in the profiled step."""

    modifies_weights = False

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            raise ValueError("as meant")


def test_an_error_leaves_no_profiler_on(tmp_path):
    # one that goes on through later runs of the process ended it there, on a GPU
    fails = "+callbacks.fails={_target_: tests.commands.test_profiler_left.Fails}"
    with pytest.raises(ValueError, match="as meant"):
        run(tmp_path / "first", *RUN, fails)
    assert not torch.autograd._profiler_enabled()
    run(tmp_path / "second", *RUN)
    assert list((tmp_path / "second").glob("fit-profile*"))

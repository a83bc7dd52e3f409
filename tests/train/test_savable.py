"""State of a user's class that no checkpoint can hold is refused, or costs no trained weights."""

from __future__ import annotations

import collections
import datetime
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from tests.train.runs import last, result_of, run, weights_of
from xftrain.checkpoint.file import AtomicCheckpointIO
from xftrain.errors import ConfigError, RunError
from xftrain.train.savable import why_unsavable

OWN = f"+callbacks.own={{_target_: {__name__}.Own, how: %s}}"


def cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


HELD: dict[str, Any] = {
    "numbers": {"a": 1.5, "b": [True, None], "c": ("x", b"y"), 3: {1, 2}, "d": 10**30},
    "tensors": [torch.ones(2), torch.arange(10)[::2], torch.nn.Parameter(torch.ones(2))],
    "bfloat16": torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
    "ordered": collections.OrderedDict(a=torch.device("cpu"), b=torch.Size([1])),
    "shared": [shared := [torch.zeros(9)], shared],
}
NOT_HELD: dict[str, Any] = {
    "numpy": np.float64(1.5),
    "array": np.arange(3),
    "object": object(),
    "function": lambda: 1,
    "path": pathlib.Path("/x"),
    "counter": collections.Counter("aab"),
    "default": collections.defaultdict(int),
    "date": datetime.datetime(2020, 1, 1),
    "complex": 1j,
    "sparse": torch.ones(2, 2).to_sparse(),
    "cycle": cycle(),
    "key": {(1, 2): 3},
}


@pytest.mark.parametrize("name", [*HELD, *NOT_HELD])
def test_it_is_judged_as_the_save_of_a_checkpoint_judges_it(tmp_path, name):
    value = (HELD | NOT_HELD)[name]
    path = tmp_path / "x.ckpt"
    try:
        AtomicCheckpointIO().save_checkpoint({"v": value}, path)
        is_saved = True
    except Exception:
        is_saved = False
    assert (why_unsavable({"v": value}) is None) == is_saved == (name in HELD)


def test_tensors_are_not_copied():
    large = torch.empty(1 << 40, device="meta")  # without memory of its own
    assert why_unsavable({"a": [large, {"b": (large,)}]}) is None


class Own(Callback):
    """A callback with a state of its own."""

    def __init__(self, how: str = "numpy") -> None:
        self.how, self.num_steps = how, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.num_steps += 1

    def state_dict(self) -> dict[str, Any]:
        if self.how == "raises":
            raise ValueError("my state")
        if self.how == "raises later" and self.num_steps:
            raise ValueError("my state")
        is_bad = self.how == "numpy" or (self.how == "numpy later" and self.num_steps)
        return {"v": np.float64(1.5) if is_bad else 1.5}


def test_a_state_that_cannot_be_saved_is_refused_before_training(tmp_path):
    # it was found at the first save, which in a short run is the last: all weights were lost
    run(tmp_path, "max_steps=1")
    before = last(tmp_path).read_bytes()
    with pytest.raises(
        ConfigError, match=r"\.Own\.state_dict\(\) returns .*\(it holds .* numpy.* float\(x\)"
    ):
        run(tmp_path, OWN % "numpy")
    assert last(tmp_path).read_bytes() == before and not (tmp_path / "former-1").exists()
    assert run(tmp_path / "unsaved", OWN % "numpy", "callbacks.checkpoint=null")["steps"] == 6


def test_a_state_that_raises_ends_the_run_before_training(tmp_path):
    with pytest.raises(ValueError, match="my state"):
        run(tmp_path, OWN % "raises")
    assert result_of(tmp_path)["steps"] == 0


@pytest.mark.parametrize("how", ["numpy later", "raises later"])
@pytest.mark.parametrize("every", [2, 100])
def test_the_weights_are_saved_where_a_state_cannot_be(tmp_path, caplog, how, every):
    error: Any = RunError if how == "numpy later" else ValueError
    saves = (
        f"callbacks.checkpoint.every_n_steps={every}",
        "callbacks.checkpoint.max_failed_saves=0",
    )
    with pytest.raises(error, match="could not be read again|my state"):
        run(tmp_path, OWN % f"'{how}'", "trainer.val_check_interval=100", *saves)
    steps = result_of(tmp_path)["steps"]
    assert steps == min(every, 6) and not last(tmp_path).exists()
    assert f"the weights of step {steps} are in " in caplog.text
    held = load_file(tmp_path / "checkpoints" / "weights.safetensors")
    run(tmp_path / "other", "trainer.val_check_interval=100", f"max_steps={steps}")
    if steps == 6:  # the schedule depends on max_steps
        expected = weights_of(last(tmp_path / "other"))
        assert all(torch.equal(value, expected[name]) for name, value in held.items())


def test_a_disk_that_is_full_for_the_weights_too_is_told(tmp_path, monkeypatch, caplog):
    def full(*_: Any) -> None:
        raise RunError("the weights could not be written: free space on its disk.")

    monkeypatch.setattr("xftrain.callbacks.checkpoint.export_weights", full)
    with pytest.raises(RunError, match="could not be read again"):
        run(tmp_path, OWN % "'numpy later'", "trainer.val_check_interval=100")
    assert "the weights could not be written either" in caplog.text

"""A checkpoint of a model with a part of the user's own, sampled from where that is composed."""

from __future__ import annotations

import pytest

from tests.train.runs import last, run
from xftrain import compose
from xftrain.commands.sample import sample
from xftrain.config.compose import _refuse_targets, validate
from xftrain.config.composed_parts import ComposedPart, with_own_parts
from xftrain.errors import ConfigError

OWN = """
from xftrain.interfaces import AttnBias

class Back:
    def __init__(self, *, window: int = 4, note: str = ""):
        self.window = window

    def build(self, num_heads, seqlens):
        return AttnBias(seqlens=seqlens, window=self.window)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of options with a user's own bias."""
    (tmp_path / "own_bias.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "conf" / "model" / "bias"
    folder.mkdir(parents=True)
    (folder / "back.yaml").write_text("_target_: own_bias.Back\nwindow: 5\nnote: ''\n")
    return tmp_path / "conf"


def test_sampling_takes_the_users_own_part_that_the_command_line_composes(
    own, tmp_path, monkeypatch
):
    monkeypatch.setenv("XFTRAIN_TEST_NOTE", "hunter2-hunter2")
    note = "model.bias.note=${oc.env:XFTRAIN_TEST_NOTE}"
    run(tmp_path / "run", "max_steps=1", "model.bias=back", note, config_dir=own)
    ckpt = f"ckpt={last(tmp_path / 'run')}"
    words = (ckpt, "num_tokens=2", "accelerator=cpu", "+model.bias=back", note)

    cfg = compose(*words, config_name="sample", config_dir=own)
    assert sample(cfg, tmp_path / "sample")["status"] == "completed"
    for others, said in [
        ((ckpt,), "_target_: own_bias.Back names a class in a configuration that was not composed"),
        ((*words, "model.bias.window=6"), "model.bias is .*6.* here and .*5.* in the checkpoint"),
        ((*words[:3], "+model.dim=3"), "model.dim comes from the checkpoint"),
        ((*words[:3], "+model.bias=alibi"), "model.bias comes from the checkpoint"),
    ]:
        cfg = compose(*others, config_name="sample", config_dir=own)
        with pytest.raises(ConfigError, match=said):
            sample(cfg, tmp_path / "refused")


def test_a_class_that_only_the_checkpoint_names_stays_refused():
    mine, other = {"_target_": "mine.Bias"}, {"_target_": "os.system"}
    saved = {"model": {"bias": dict(mine), "ffn": other}}
    told = with_own_parts(saved, {"bias": mine}, {"bias": mine})

    assert isinstance(told["model"]["bias"], ComposedPart)
    with pytest.raises(ConfigError, match="os.system names a class"):
        _refuse_targets(told)
    with pytest.raises(ConfigError, match="mine.Bias names a class"):
        validate(saved)
    with pytest.raises(ConfigError, match="model.ffn is .*mine.Bias.* and .*os.system"):
        with_own_parts(saved, {"ffn": mine}, {"ffn": mine})


@pytest.mark.parametrize("entry", [{"table": "/etc/passwd"}, {"_target_": "os.system"}])
def test_a_layer_of_the_checkpoint_sets_no_argument_of_the_users_class(entry):
    mine = {"_target_": "mine.Own", "table": None}
    layers = {"pattern": ["a"], "a": {"bias": entry}}
    saved = {"model": {"bias": mine, "layers": layers}}
    with pytest.raises(
        ConfigError, match=r"model\.layers\.a\.bias of the checkpoint sets argument"
    ):
        with_own_parts(saved, {"bias": mine}, {"bias": mine})
    layers["a"]["bias"] = {"name": "window", "window": 3}
    assert with_own_parts(saved, {"bias": mine}, {"bias": mine})["model"]["bias"] == mine

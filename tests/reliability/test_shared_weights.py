"""A checkpoint whose weights share their numbers is small, and its model is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import xftrain
from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import builder
from xftrain.errors import ConfigError


def _sample(run_dir: Path, ckpt: Path) -> None:
    words = (f"ckpt={ckpt}", "accelerator=cpu", "num_tokens=1")
    xftrain.run(xftrain.compose(*words, config_name="sample"), run_dir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    run(run_dir, "max_steps=1", "model.num_layers=3", "model.tie_embeddings=true")
    return last(run_dir)


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("what", ["layers", "rows of one matrix"])
def test_no_model_is_built_that_is_larger_than_its_weights(tmp_path, trained, monkeypatch, what):
    saved = read_checkpoint(trained)
    weights: dict[str, torch.Tensor] = saved["state_dict"]
    largest = torch.zeros(max(weight.numel() for weight in weights.values()) + 100)
    for number, (name, weight) in enumerate(list(weights.items())):
        if what == "layers":
            weights[name] = weights[name.replace("blocks.2", "blocks.1")]
        else:
            start = number if number < 100 else 0
            weights[name] = largest[start : start + weight.numel()].view(weight.shape)
    torch.save(saved, tmp_path / "hostile.ckpt")
    assemble, built = builder.assemble, []

    def counted(model: Any, num_tokens: int) -> Any:
        built.append(torch.empty(0).device.type)
        return assemble(model, num_tokens)

    monkeypatch.setattr(builder, "assemble", counted)
    with pytest.raises(ConfigError, match="numbers for a model of .* as its weights share them"):
        _sample(tmp_path / "sample", tmp_path / "hostile.ckpt")
    assert built == ["meta"]


@pytest.mark.parametrize("kind", ["tied", "narrow", "in one buffer"])
def test_weights_that_take_the_room_that_they_need_are_sampled(tmp_path, trained, kind):
    saved = read_checkpoint(trained)
    weights: dict[str, torch.Tensor] = saved["state_dict"]
    assert len({weight.data_ptr() for weight in weights.values()}) == len(weights) - 1
    if kind == "narrow":
        saved["state_dict"] = {name: weight.bfloat16() for name, weight in weights.items()}
    if kind == "in one buffer":
        buffer = torch.cat([weight.flatten() for weight in weights.values()])
        parts = buffer.split([weight.numel() for weight in weights.values()])
        saved["state_dict"] = {
            name: part.view(weight.shape)
            for (name, weight), part in zip(weights.items(), parts, strict=True)
        }
    torch.save(saved, tmp_path / "mine.ckpt")
    _sample(tmp_path / "sample", tmp_path / "mine.ckpt")
    assert (tmp_path / "sample" / "sample.txt").is_file()


@pytest.mark.fault("hostile checkpoint")
def test_a_model_of_thousands_of_layers_is_refused_before_it_is_planned(
    tmp_path, trained, monkeypatch
):
    saved = read_checkpoint(trained)
    weights: dict[str, torch.Tensor] = saved["state_dict"]
    weights |= {f"model.blocks.{n}.norm1.weight": torch.zeros(1) for n in range(3, 8000)}
    saved["xftrain"]["config"]["model"]["num_layers"] = 7000
    torch.save(saved, tmp_path / "deep.ckpt")
    monkeypatch.setattr(builder, "assemble", lambda *_: pytest.fail("assembled"))
    with pytest.raises(ConfigError, match="a model of 7,000 layers, and at most 2,000"):
        _sample(tmp_path / "sample", tmp_path / "deep.ckpt")

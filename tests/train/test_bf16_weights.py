"""The bfloat16 copies of weights: a run with them is the run without, and where there are none."""

from __future__ import annotations

import copy
import logging
import math
import pickle

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from tests.train.runs import last, model_and_data, run, same_weights, weights_of
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import RunError
from xftrain.kernels.fused_adamw import FusedAdamW
from xftrain.model.linear import Linear
from xftrain.optim.adamw import AdamW
from xftrain.train import bf16_weights, module
from xftrain.train.bf16_weights import BF16Weights, layers_with_copies

# no clipping: the norm of gradients is a sum, which in another dtype is made in another order
RUN = ("trainer.precision=bf16-mixed", "model.num_layers=2", "model.dropout=0.1", "optim.lr=0.01")


EXACT = (*RUN, "trainer.gradient_clip_val=null")


CASES = {
    "rows": (),
    "accumulated": ("trainer.accumulate_grad_batches=3",),
    "packed": ("data=counting_packed", "model.bias=alibi", "model.heads=gqa"),
    "recomputed": ("model.activation_checkpointing=true", "model.ffn=gelu"),
    "ffn": ("model.activation_checkpointing=ffn",),
    "muon": ("optim=muon",),
    "xformers": (
        "model.ffn.impl=xformers",
    ),  # whose feed-forward reads its weights, which have no copies then
}


def with_and_without(tmp_path, monkeypatch, *words: str) -> None:
    """A run with copies leaves bitwise what one leaves whose weights autocast copies."""
    run(tmp_path / "with", *words)
    with monkeypatch.context() as patch:
        patch.setattr(bf16_weights, "weight_modifiers", lambda parts: ["Somebody"])
        run(tmp_path / "without", *words)
    assert same_weights(last(tmp_path / "with"), last(tmp_path / "without"))


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_copies_is_the_run_without(tmp_path, adamw_on_cpu, monkeypatch, case):
    dtypes, step = [], FusedAdamW.step

    def seen(self, closure=None):
        result = step(self, closure)
        dtypes.extend(weight.grad.dtype for weight in self.copies)
        for weight, narrow in self.copies.items():
            assert torch.equal(narrow, weight.to(torch.bfloat16))
        return result

    monkeypatch.setattr(FusedAdamW, "step", seen)
    with_and_without(tmp_path, monkeypatch, *EXACT, *CASES[case])
    assert set(dtypes) == {torch.float32 if case == "accumulated" else torch.bfloat16}


def test_weights_may_be_restored_after_the_optimizer_is_made(tmp_path, adamw_on_cpu, monkeypatch):
    configure = module.TrainingModule.configure_optimizers

    def then_restore(self):
        made = configure(self)
        with torch.no_grad():
            for weight in self.model.blocks.parameters():
                weight.mul_(0.5)
        return made

    monkeypatch.setattr(module.TrainingModule, "configure_optimizers", then_restore)
    with_and_without(tmp_path, monkeypatch, *EXACT)


def test_a_run_learns_what_torchs_learns(tmp_path, adamw_on_cpu):
    words = (*RUN, "trainer.gradient_clip_val=0.5")
    ours, torchs = (
        run(tmp_path / impl, *words, f"optim.impl={impl}")["metrics"] for impl in ("auto", "torch")
    )
    for name in ("train/loss", "val/loss", "train/grad_norm"):
        assert ours[name] == pytest.approx(torchs[name], rel=1e-3)
    assert ours["train/grad_norm"] > 0.6  # it was clipped, which moments show
    states = [
        read_checkpoint(last(tmp_path / impl))["optimizer_states"][0]["state"]
        for impl in ("auto", "torch")
    ]
    for number, state in states[0].items():
        for name, value in state.items():
            torch.testing.assert_close(
                value.norm(), states[1][number][name].norm(), rtol=0.02, atol=0
            )


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_a_run_goes_on_bitwise_and_from_the_others_checkpoint(tmp_path, adamw_on_cpu, impl):
    words = (*RUN, "schedule=constant")
    run(tmp_path / "whole", *words)
    run(tmp_path / "cut", *words, f"optim.impl={impl}", "max_steps=3")
    run(tmp_path / "cut", *words, "ckpt=auto")
    whole, cut = (read_checkpoint(last(tmp_path / name)) for name in ("whole", "cut"))
    if impl == "auto":
        assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))
    for number, state in whole["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            other = cut["optimizer_states"][0]["state"][number][name]
            assert (value - other).norm() <= 0.02 * value.norm()


class Own(Callback):
    """A callback that declares nothing, so that it may modify weights."""


class Harmless(Own):
    modifies_weights = False


class Mine(AdamW):
    """A user's own optimizer option."""


OWN = {
    "callback": "+callbacks.own={_target_: tests.train.test_bf16_weights.Own}",
    "harmless callback": "+callbacks.own={_target_: tests.train.test_bf16_weights.Harmless}",
    "optimizer": "optim=mine",
    "layer": "model.ffn=masked",
}


@pytest.mark.parametrize("own", OWN)
def test_where_somebody_elses_code_may_look_there_are_no_copies(
    tmp_path, adamw_on_cpu, monkeypatch, caplog, own
):
    seen, step = [], FusedAdamW.step

    def counted(self, closure=None):
        seen.append(len(self.copies))
        return step(self, closure)

    monkeypatch.setattr(FusedAdamW, "step", counted)
    for path, kind in {"model/ffn/masked": "Masked", "optim/mine": "Mine"}.items():
        file = tmp_path / "own" / f"{path}.yaml"
        file.parent.mkdir(parents=True)
        more = "lr: 0.01\nweight_decay: 0.0\n" if kind == "Mine" else ""
        file.write_text(f"_target_: {__name__}.{kind}\n{more}")
    words = (*RUN, OWN[own], "optim.weight_decay=0")
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", *words, config_dir=tmp_path / "own")
    assert set(seen) == {{"layer": 2 * 2, "harmless callback": 2 * 4}.get(own, 0)}  # qkv and out
    is_stranger = own in ("callback", "optimizer")
    assert ("no bfloat16 copies of weights" in caplog.text) == is_stranger
    if own == "layer":  # with a hook on a weight, which is called
        weights = weights_of(last(tmp_path / "run"))
        initial, _ = model_and_data(*words, config_dir=tmp_path / "own")
        kept = initial.state_dict()["blocks.0.ffn.up.weight"]
        assert torch.equal(weights["blocks.0.ffn.up.weight"], kept)


class Masked(nn.Module):
    """A user's own feed-forward whose first matrix is frozen."""

    def __init__(self, dim: int, linear_bias: bool) -> None:
        super().__init__()
        self.up = Linear(dim, 2 * dim, bias=linear_bias)
        self.down = Linear(2 * dim, dim, bias=linear_bias)
        self.up.weight.register_hook(lambda grad: grad * 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class NaNForWeights(torch.autograd.Function):
    """A linear layer whose weight has a NaN gradient."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad @ weight, torch.full_like(weight, math.nan)


def test_a_gradient_that_is_not_finite_is_found_by_its_name(tmp_path, adamw_on_cpu, monkeypatch):
    forward = Linear.forward

    def spoiled(self, x):
        if self.weight.shape != (32, 32):  # that of `out` alone
            return forward(self, x)
        return NaNForWeights.apply(x, self.read_for(x).to(x.dtype))

    monkeypatch.setattr(Linear, "forward", spoiled)
    named = r"step 1 .*first in the gradient of blocks\.0\.out\.weight, blocks\.1\.out\.weight\)"
    with pytest.raises(RunError, match=named):
        run(tmp_path, *RUN)


def test_which_layers_have_copies(adamw_on_cpu):
    model, _ = model_and_data("model.num_layers=2")
    blocks = model.blocks
    blocks[0].out.weight.requires_grad_(False)
    blocks[1].out.weight = blocks[1].heads.qkv.weight  # of two layers

    class Other(Linear):
        pass

    blocks[1].ffn.up.__class__ = Other
    layers = [blocks[0].heads.qkv, blocks[0].ffn.up, blocks[0].ffn.down, blocks[1].ffn.down]
    assert list(layers_with_copies(model)) == layers
    blocks[0].ffn.up.weight.register_hook(lambda grad: grad)
    assert list(layers_with_copies(model)) == [layers[0], *layers[2:]]
    blocks[0].ffn.impl = "xformers"  # reads its weights without calling its layers
    assert list(layers_with_copies(model)) == [layers[0], layers[3]]


def test_copies_are_read_where_gradients_are_made_and_nowhere_else(adamw_on_cpu):
    model, _ = model_and_data()
    layer = model.blocks[0].out
    narrow = BF16Weights(model, torch.bfloat16)
    x = torch.randn(3, 32)
    assert layer.read_for(x) is layer.weight  # not the dtype of products
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.read_for(x) is layer.bf16_weight
        with torch.no_grad():
            assert layer.read_for(x) is layer.weight
        with narrow.set_aside():
            assert layer.read_for(x) is layer.weight
        layer(x).sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16 and layer.bf16_weight.grad is None
    assert not any("bf16_weight" in name for name in model.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.bf16_weight is None and layer.bf16_weight is not None


def test_compiled_blocks_share_their_code(adamw_on_cpu):
    model, data = model_and_data("model.num_layers=3")
    batch = data.batch("train", 0)

    def gradients() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            model(batch.tokens_BM).float().square().mean().backward()
        return [weight.grad.float() for weight in model.blocks.parameters()]

    expected = gradients()
    model.zero_grad(set_to_none=True)
    BF16Weights(model, torch.bfloat16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_blocks(packed=False)
    for one, two in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.02 * two.abs().max().item())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a block, the last norm
    assert not torch._dynamo.utils.counters["graph_break"]

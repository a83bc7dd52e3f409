"""What the user's own parts return is checked once before training, shapes and dtypes included."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import changed, options
from tests.train.runs import last, result_of, run, same_weights
from xftrain.commands import builder
from xftrain.commands.preflight import check_runnable, first_batch
from xftrain.data.counting import Counting
from xftrain.errors import ConfigError
from xftrain.loss.full import Full
from xftrain.model.attn.naive import Naive
from xftrain.model.heads.gqa import GQA
from xftrain.model.pos.rope import RoPE
from xftrain.optim.adamw import AdamW

CPU = torch.device("cpu")


def change(made: Any) -> Any:
    """Applied by the classes below to their results; tests replace it."""
    return made


class Ffn(nn.Module):
    def __init__(self, dim: int, linear_bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Any:
        return change(self.down(self.up(x).relu()))


class Norm(nn.Module):
    def __init__(self, dim: int, linear_bias: bool) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Any:
        return change(F.layer_norm(x, x.shape[-1:]))


class Heads(GQA):
    def forward(self, x: Tensor) -> Any:
        return change(super().forward(x))


class Uneven(GQA):
    def __init__(self, *sizes: Any, num_kv_heads: int) -> None:
        super().__init__(*sizes, num_kv_heads=num_kv_heads)
        self.num_kv_heads = 3


class Embeds(RoPE):
    def embed(self, x: Tensor, positions_1M: Tensor) -> Any:
        return change(x)


class Applies(RoPE):
    def apply_to(self, *of_layer: Any) -> Any:
        return change(super().apply_to(*of_layer))


class Limited(RoPE):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.max_positions = "many"


class Attention(Naive):
    def __call__(self, *args: Any) -> Any:
        return change(super().__call__(*args))


class Reasons(Naive):
    def reasons(self, call: Any, *, needs_grad: bool = True) -> Any:
        return change([])


class Loss(Full):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return change(super().__call__(*args, **kwargs))


class Optim(AdamW):
    def build(self, *args: Any) -> Any:
        return change(super().build(*args))


class Data(Counting):
    def num_label_bytes(self, labels_BM: Tensor) -> Any:
        return change(None)


def _own(kind: type) -> dict[str, str]:
    return {"_target_": f"{__name__}.{kind.__name__}"}


GROUPS = {
    Ffn: "model.ffn",
    Norm: "model.norm",
    Heads: "model.heads",
    Uneven: "model.heads",
    Embeds: "model.pos",
    Applies: "model.pos",
    Limited: "model.pos",
    Attention: "model.attn",
    Reasons: "model.attn",
    Loss: "loss",
    Optim: "optim",
    Data: "data",
}


def _sums(**values: Any) -> Any:
    return lambda sums: sums._replace(
        **{name: value(getattr(sums, name)) for name, value in values.items()}
    )


def _each(index: int, one: Any) -> Any:
    return lambda made: tuple(one(x) if i == index else x for i, x in enumerate(made))


BMD = r"a float32 tensor of shape \[B, M, D\] = \[8, 16, 32\], got "
HEAD = r"a float32 tensor of shape \[B, M, H, K\] = \[8, 16, 4, 8\], got "
GROUP = r"a float32 tensor of shape \[B, M, G, K\] = \[8, 16, 2, 8\], got "
WRONG: list[tuple[type, Any, str]] = [
    (Ffn, lambda x: x[..., :1], rf"Ffn.forward must return {BMD}a float32 tensor of \[8, 16, 1\]"),
    (Ffn, lambda x: x[:1], rf"{BMD}a float32 tensor of \[1, 16, 32\]"),
    (Ffn, lambda x: x[:, :1], rf"{BMD}a float32 tensor of \[8, 1, 32\]"),
    (Ffn, lambda x: None, rf"{BMD}None"),
    (Ffn, lambda x: [x], rf"{BMD}a list of \(a float32 tensor"),
    (Ffn, lambda x: x.double(), rf"{BMD}a float64 tensor"),
    (Ffn, lambda x: x.to("meta"), rf"{BMD}a float32 tensor of \[8, 16, 32\] on meta"),
    (Ffn, lambda x: (x[:1], x.mean()), rf"{BMD}a float32 tensor of \[1, 16, 32\]"),
    (Ffn, lambda x: (x, 0.5), "or a pair of it and its auxiliary loss, .* a value of type float"),
    (Ffn, lambda x: (x, x.mean(), 1), "or a pair of it and its auxiliary loss"),
    (Norm, lambda x: x.mean(-1, keepdim=True), rf"Norm.forward must return {BMD}"),
    (Heads, lambda x: x[0], "Heads.forward must return a tuple of q_BMHK, k_BMGK, v_BMGK, got a "),
    (Heads, _each(0, lambda q: q[:, :, :1]), rf"Heads.forward, of q, must return {HEAD}"),
    (Heads, _each(1, lambda k: k[:1]), rf"Heads.forward, of k, must return {GROUP}"),
    (Heads, _each(2, lambda v: v[..., :4]), rf"Heads.forward, of v, must return {GROUP}"),
    (Uneven, lambda x: x, "Uneven.num_kv_heads must divide the 4 query heads, got 3"),
    (Embeds, lambda x: x[:, :1], rf"Embeds.embed must return {BMD}"),
    (Applies, lambda x: x[0], "Applies.apply_to must return a tuple of q_BMHK, k_BMGK, got a "),
    (Applies, _each(1, lambda k: k[:1]), rf"Applies.apply_to, of k, must return {GROUP}"),
    (
        Limited,
        None,
        "model.pos: Limited.max_positions must be an integer >= 1, or None, got 'many'",
    ),
    (Attention, lambda x: x[:1], rf"Attention.__call__ must return {HEAD}a float32 tensor of \[1"),
    (Attention, lambda x: x.flatten(2), rf"Attention.__call__ must return {HEAD}"),
    (Reasons, lambda _: "no", "Reasons.reasons must return a list of reasons, empty where it runs"),
    (Loss, tuple, "Loss.__call__ must return an xftrain.interfaces.LossSums, got a tuple of"),
    (Loss, lambda _: None, "Loss.__call__ must return an xftrain.interfaces.LossSums, got None"),
    (Loss, _sums(num_labels=int), "num_labels is a scalar tensor of integers, .* of type int"),
    (Loss, _sums(num_labels=Tensor.float), "num_labels is a scalar .* a float32 tensor of"),
    (Loss, _sums(num_correct=lambda _: None), "num_correct is a scalar .*, got None"),
    (Loss, _sums(loss=lambda x: x[None]), r"loss is a floating-point .* tensor of \[1\]"),
    (Loss, _sums(loss=Tensor.detach), "loss is a floating-point .* without a gradient"),
    (Optim, lambda made: made[0], "Optim.build must return a torch.optim.Optimizer and a learning"),
    (Optim, lambda made: made[::-1], "Optim.build must return a torch.optim.Optimizer and a"),
    (Data, lambda _: 0.5, "Data.num_label_bytes must return an integer, or None"),
]


def _chosen(tmp_path: Path, kind: type) -> tuple[str, Any]:
    key = GROUPS[kind]
    node = _own(kind)
    more = {
        Heads: "\nnum_kv_heads: 2",
        Uneven: "\nnum_kv_heads: 2",
        Data: "\nvocab_size: 64\nstop_at_accuracy: null",
    }
    path = tmp_path / "own" / f"{key.replace('.', '/')}/mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"_target_: {node['_target_']}{more.get(kind, '')}\n")
    return f"{key}=mine", tmp_path / "own"


@pytest.mark.parametrize(("kind", "spoil", "said"), WRONG)
def test_what_a_part_returns_is_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, spoil: Any, said: str
) -> None:
    monkeypatch.setattr(f"{__name__}.change", spoil)
    own, config_dir = _chosen(tmp_path, kind)
    heads = (
        [] if GROUPS[kind] == "model.heads" else ["model.heads=gqa", "model.heads.num_kv_heads=2"]
    )
    words = ("model.num_heads=4", *heads, own, "callbacks=none", "logger=none")
    with pytest.raises(ConfigError, match=said) as refused:
        run(tmp_path / "run", *words, config_dir=config_dir)
    sentence = str(refused.value)
    assert sentence.endswith(".") and "\n" not in sentence
    ended = result_of(tmp_path / "run")
    assert (ended["status"], ended["steps"]) == ("refused", 0)


def _check(dtype: torch.dtype = torch.float32, **values: Any) -> None:
    own = {GROUPS[kind]: _own(kind) for kind in (Ffn, Norm, Embeds, Attention, Loss)}
    chosen = changed(
        options(), {**own, "model.heads": {**_own(Heads), "num_kv_heads": 2}, **values}
    )
    data = builder.build_data(chosen)
    loss = builder.build_loss(chosen)
    check_runnable(chosen, loss, 64, first_batch(data, 0), CPU, dtype)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
    ],
)
def test_right_parts_pass_in_every_precision_and_leave_the_random_state(
    precision: str, dtype: torch.dtype
) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    _check(dtype, **{"trainer.precision": precision})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_a_wrong_dtype_is_refused_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.change", lambda x: x.double() if isinstance(x, Tensor) else x)
    with pytest.raises(ConfigError, match="must return a bfloat16 or float32 tensor of shape"):
        _check(torch.bfloat16)


def test_the_part_of_a_single_layer_is_named_by_its_key(tmp_path: Path, monkeypatch) -> None:
    def spoil(x: Any) -> Any:
        return x[:1]

    monkeypatch.setattr(f"{__name__}.change", spoil)
    entries = f"a: {{bias: causal}}, b: {{ffn: {{_target_: {__name__}.Ffn}}}}"
    layers = f"+model.layers={{pattern: [a, b], {entries}}}"
    with pytest.raises(ConfigError, match=r"^model\.layers\.b\.ffn: Ffn\.forward must return "):
        run(tmp_path, "model.num_layers=2", "~model.layers", layers)


def test_a_part_that_fails_before_training_is_said_and_left_to_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(x: Any) -> Any:
        raise RuntimeError("only in a step\nand nowhere else")

    monkeypatch.setattr(f"{__name__}.change", fail)
    with caplog.at_level(logging.INFO, logger="xftrain.commands.own_parts"):
        _check()
    told = [one.getMessage() for one in caplog.records if one.name == "xftrain.commands.own_parts"]
    said = "cannot be called before training (RuntimeError: only in a step), so what it returns"
    assert f"model.ffn: {__name__}.Ffn {said} is not checked" in told
    assert len(told) == 6


def test_the_check_changes_no_weight(tmp_path: Path) -> None:
    own, config_dir = _chosen(tmp_path, Attention)
    run(tmp_path / "own run", own, config_dir=config_dir)
    run(tmp_path / "naive run")
    assert same_weights(last(tmp_path / "own run"), last(tmp_path / "naive run"))

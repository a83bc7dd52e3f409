"""Which products are chosen by measuring, and which layers are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.matmul_inputs import D, H, inputs
from tests.train.runs import run
from xftrain.kernels import linear_functions, matmul
from xftrain.kernels.linear_functions import (
    autotuned_gelu_mlp,
)
from xftrain.model.ffn.geglu import GEGLU
from xftrain.model.ffn.gelu import GELU
from xftrain.model.ffn.swiglu import SwiGLU
from xftrain.model.linear import Linear


def test_layers_ask_whether_to_choose(monkeypatch):
    layer, ffn, asked = Linear(D, H, bias=False), GELU(D, linear_bias=False), []

    def should_autotune(x, *layers):
        asked.append(layers)
        return True

    for module in ("xftrain.model.linear", "xftrain.model.ffn.gelu"):
        monkeypatch.setattr(f"{module}.should_autotune", should_autotune)
    x = torch.randn(3, D)
    torch.testing.assert_close(layer(x), nn.Linear.forward(layer, x))
    torch.testing.assert_close(ffn(x), ffn.down(ffn.activation(ffn.up(x))))
    assert asked[:2] == [(layer,), (ffn.up, ffn.down)]


@pytest.mark.parametrize("kind", [SwiGLU, GEGLU])
def test_gated_layers_ask_as_well(monkeypatch, kind):
    asked = []

    def gates(h, layer):
        asked.append(layer)
        return True

    monkeypatch.setattr("xftrain.model.ffn._feedforward.should_fuse_gate", gates)
    ffn, x = kind(D, linear_bias=False), torch.randn(2, 3, D)
    gate, value = ffn.up(x).chunk(2, dim=-1)
    torch.testing.assert_close(ffn(x), ffn.down(ffn.activation(gate) * value))
    assert asked == [ffn.down]

    class Own(kind):
        def activation(self, x):
            return x

    own = Own(D, linear_bias=False)
    gate, value = own.up(x).chunk(2, dim=-1)
    torch.testing.assert_close(own(x), own.down(gate * value))
    SwiGLU(D, linear_bias=False, impl="torch")(x)
    ffn.down.register_forward_hook(lambda *_: asked.append("hook"))
    ffn(x)
    assert asked == [ffn.down, "hook"]


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, True),
        ({"sizes": (64, 64, 64)}, False),  # small
        ({"dtype": torch.float32}, False),
        ({"bias": True}, False),
        ({"how": "torch"}, False),
        ({"exact": True}, False),
    ],
    ids=str,
)
def test_what_is_chosen(monkeypatch, change, chosen):
    case = {"sizes": (4096, 2048, 2048), "dtype": torch.bfloat16, "bias": False, "how": "auto"}
    case |= {"exact": False} | change
    n, d, h = case["sizes"]
    monkeypatch.setattr(matmul, "has_cublaslt", lambda: True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: case["exact"])
    with matmul.autotuner_set(matmul.Autotuner() if case["how"] == "auto" else None):
        layer = Linear(d, h, bias=case["bias"])
        x = torch.empty(n, d, dtype=case["dtype"])
        monkeypatch.setattr(linear_functions, "_on_gpu", lambda tensor: True)
        assert linear_functions.should_autotune(x, layer) is chosen


def test_batches_of_ever_new_sizes_are_measured_no_more(monkeypatch):
    measured = []

    def measure(*arguments):
        measured.append(arguments)

    monkeypatch.setattr(matmul, "has_cublaslt", lambda: True)
    monkeypatch.setattr(matmul, "is_supported", lambda *matrices: True)
    monkeypatch.setattr(matmul, "_fastest_algorithm", measure)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(matmul, "_MAX_CHOICES", 2)
    monkeypatch.setattr(matmul, "_MIN_FLOP", 2 * 4 * D * H)
    with matmul.autotuner_set(matmul.Autotuner()):
        for n in (3, 4, 5, 6, 3, 4, 5, 6):  # 3 is small
            x, weight = torch.randn(n, D), torch.randn(H, D)
            torch.testing.assert_close(matmul.linear(x, weight), F.linear(x, weight))
    assert len(measured) == 2


def test_layers_that_are_more_than_themselves_are_called(monkeypatch):
    monkeypatch.setattr("xftrain.model.ffn.gelu.should_autotune", lambda *args: True)
    called = []
    ffn = GELU(D, linear_bias=False)
    ffn.up.register_forward_hook(lambda *args: called.append("hook"))
    ffn(torch.randn(3, D))
    assert called == ["hook"]

    class Other(Linear):
        def forward(self, x):
            called.append("other")
            return super().forward(x)

    ffn = GELU(D, linear_bias=False)
    ffn.down = Other(4 * D, D, bias=False)
    ffn(torch.randn(3, D))
    assert called == ["hook", "other"]


def test_a_frozen_layer_has_no_gradient():
    x, up, down = inputs()
    up.requires_grad_()
    autotuned_gelu_mlp(x, up, down).sum().backward()
    assert up.grad is not None and x.grad is None and down.grad is None


def test_a_run_ends_choosing(tmp_path):
    run(tmp_path, "max_steps=1")
    assert not matmul.is_autotuning() and matmul._setting.tuner is None

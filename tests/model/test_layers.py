"""Layers against formulas written out independently."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import gpt
from xftrain.config import registry
from xftrain.errors import ConfigError
from xftrain.model.ffn._feedforward import gated_width
from xftrain.model.ffn.swiglu import SwiGLU
from xftrain.model.pos.learned import Learned
from xftrain.model.pos.rope import RoPE, rotate

GATED = ("swiglu", "geglu")
WIDTHS = {"gelu": 512, "relu2": 512, "swiglu": 384, "geglu": 384}  # of a model of width 128


# ---- positions


def test_rope_is_a_product_of_complex_numbers():
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 0, 1, 1000]])
    x = torch.randn(1, 6, 3, 8)
    got = rotate(x, RoPE(24, 8, base=100.0).prepare(positions))
    for m, position in enumerate(positions[0].tolist()):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            turned = torch.complex(x[0, m, :, pair], x[0, m, :, pair + 4]).to(torch.complex128)
            turned = turned * complex(math.cos(angle), math.sin(angle))
            want = torch.stack([turned.real, turned.imag])
            assert torch.allclose(got[0, m, :, [pair, pair + 4]].T.double(), want, atol=2e-4)


def test_scores_under_rope_depend_on_the_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 16).double()
    layer = RoPE(16, 16)

    def turned(x: Tensor, position: int) -> Tensor:
        cos, sin = layer.prepare(torch.tensor([[position]]))
        first, second = x.chunk(2)
        cos, sin = cos.flatten().double(), sin.flatten().double()
        via_layer = rotate(x.float().view(1, 1, 1, 16), layer.prepare(torch.tensor([[position]])))
        by_hand = torch.cat([first * cos - second * sin, second * cos + first * sin])
        assert torch.allclose(via_layer.flatten().double(), by_hand, atol=1e-5)
        return by_hand

    for distance in (0, 1, 17):
        scores = [float(turned(q, at + distance) @ turned(k, at)) for at in (0, 3, 250)]
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    assert turned(q, 5) @ turned(k, 4) != pytest.approx(float(turned(q, 6) @ turned(k, 4)))


def test_rope_keeps_lengths_and_the_dtype():
    x = torch.randn(2, 5, 3, 8)
    rotation = RoPE(24, 8).prepare(torch.arange(5).expand(2, 5))
    assert torch.allclose(rotate(x, rotation).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert rotate(x.bfloat16(), rotation).dtype == torch.bfloat16


def test_ropes_angles_do_not_follow_the_default_dtype():
    # under trainer.precision=bf16-true the frequencies were rounded to bfloat16: off by 0.35
    layer, positions = RoPE(32, 16), torch.arange(2000)[None]
    exact = layer.prepare(positions)
    torch.set_default_dtype(torch.bfloat16)
    try:
        under_bf16 = layer.prepare(positions)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(exact, under_bf16, strict=True))


def test_rope_needs_pairs():
    with pytest.raises(ConfigError, match="even, got 5"):
        RoPE(15, 5)


def test_learned_positions_are_rows_of_a_table():
    layer = Learned(4, 2, max_positions=3)
    x, positions = torch.randn(1, 5, 4), torch.tensor([[0, 1, 2, 0, 1]])
    assert torch.equal(layer.embed(x, positions), x + layer.table.weight[[0, 1, 2, 0, 1]])


@pytest.mark.parametrize("pos", registry.option_names("model/pos"))
def test_positions_reach_the_model_or_do_not(pos):
    # attention alone, without a mask on order, tells a bag of tokens from another
    model = gpt(pos=pos, bias="full", scale=5.0)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        one, two = model(tokens), model(tokens.flip(1)).flip(1)
    assert torch.allclose(one, two, atol=1e-4) == (pos == "none")


# ---- head groupings


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa"])
def test_query_heads_share_key_heads_in_order(name):
    """Query head h reads K/V head h * G // H; the projection holds q, then k, then v."""
    torch.manual_seed(0)
    D, H = 32, 8
    options = {"num_kv_heads": 2} if name == "gqa" else {}
    layer = registry.load_class("model/heads", name)(D, H, True, **options)
    G, K = {"mha": 8, "gqa": 2, "mqa": 1}[name], D // H
    x = torch.randn(2, 5, D)
    q, k, v = layer(x)
    assert (q.shape, k.shape, v.shape) == ((2, 5, H, K), (2, 5, G, K), (2, 5, G, K))
    rows = (layer.qkv.weight @ x[1, 3] + layer.qkv.bias).split(K)
    assert len(rows) == H + 2 * G
    for got, want in zip([*q[1, 3], *k[1, 3], *v[1, 3]], rows, strict=True):
        assert torch.allclose(got, want, atol=1e-6)


def test_the_model_pairs_heads_as_an_explicit_loop_does():
    torch.manual_seed(0)
    model = gpt(heads="gqa", pos="none", scale=5.0)
    block, tokens = model.blocks[0], torch.arange(6)[None]
    seen = {}
    block.out.register_forward_hook(lambda module, args, _: seen.update(out=args[0]))
    with torch.no_grad():
        model(tokens)
        q, k, v = block.heads(block.norm_attn(model.embed(tokens)))
        for h in range(4):
            group = h * 2 // 4
            for i in range(6):
                scores = torch.stack([q[0, i, h] @ k[0, j, group] / 4 for j in range(i + 1)])
                want = scores.softmax(0) @ v[0, : i + 1, group]
                assert torch.allclose(seen["out"][0, i, 16 * h : 16 * h + 16], want, atol=1e-5)


# ---- feed-forward


def by_formula(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    inner = F.linear(x, layer.up.weight, layer.up.bias)
    gate, value = inner.chunk(2, -1) if name in GATED else (inner, inner)
    cube = gate + 0.044715 * gate**3
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * cube))
    inner = {
        "gelu": gelu,
        "geglu": gelu * value,
        "swiglu": gate * torch.sigmoid(gate) * value,
        "relu2": gate.clamp(min=0) ** 2,
    }[name]
    return F.linear(inner, layer.down.weight, layer.down.bias)


@pytest.mark.parametrize("linear_bias", [False, True])
@pytest.mark.parametrize("name", registry.option_names("model/ffn"))
def test_feed_forward_maps_each_position_by_itself(name, linear_bias):
    torch.manual_seed(0)
    layer = registry.load_class("model/ffn", name)(128, linear_bias)
    x = 3 * torch.randn(2, 5, 128)
    outs = [layer(part) for part in (x, x[:, 2:3])]
    whole, alone = (out[0] if isinstance(out, tuple) else out for out in outs)
    assert whole.shape == x.shape and whole.dtype == x.dtype
    assert torch.allclose(whole[:, 2:3], alone, atol=1e-5)


@pytest.mark.parametrize("linear_bias", [False, True])
@pytest.mark.parametrize("name", WIDTHS)
def test_feed_forward_is_its_formula_with_its_paper_width(name, linear_bias):
    torch.manual_seed(0)
    layer = registry.load_class("model/ffn", name)(128, linear_bias)
    gated = name in GATED
    assert layer.down.weight.shape == (128, WIDTHS[name])
    assert layer.up.weight.shape == ((1 + gated) * WIDTHS[name], 128)
    assert (layer.up.bias is not None) == (layer.down.bias is not None) == linear_bias
    x = 3 * torch.randn(2, 5, 128)
    assert torch.allclose(layer(x), by_formula(name, layer, x), atol=1e-5)
    own = registry.load_class("model/ffn", name)(128, linear_bias, hidden_dim=40)
    assert own.down.weight.shape == (128, 40)


def test_gated_width_has_the_parameters_of_a_plain_one():
    assert gated_width(2048) == 5504  # 5461.3, to a multiple of 64
    assert gated_width(4096) == 10944
    for dim in (64, 768, 1600):
        assert 0 <= 3 * gated_width(dim) * dim - 8 * dim * dim < 3 * 64 * dim


def output_and_grads(layer: nn.Module, x: Tensor, dout: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], dout)]


def check_swiglu(impl: str, device: str, linear_bias: bool) -> None:
    torch.manual_seed(0)
    plain = SwiGLU(64, linear_bias, impl="torch").to(device)
    other = SwiGLU(64, linear_bias, impl=impl).to(device)
    other.load_state_dict(plain.state_dict())
    calls = []
    if impl == "xformers":  # the one that skips the module's own product
        other.up.register_forward_hook(lambda *_: calls.append(1))
    x, dout = torch.randn(2, 2, 7, 64, device=device)
    for mine, right in zip(
        output_and_grads(other, x, dout), output_and_grads(plain, x, dout), strict=True
    ):
        assert torch.allclose(mine, right, atol=2e-5, rtol=1e-4)
    assert not calls


@pytest.mark.parametrize("linear_bias", [False, True])
def test_swiglu_of_xformers_equals_torchs(linear_bias):
    check_swiglu("xformers", "cpu", linear_bias)


@pytest.mark.cuda
@pytest.mark.parametrize("linear_bias", [False, True])
@pytest.mark.parametrize("impl", ["xformers", "liger", "auto"])
def test_swiglu_equals_torchs_on_cuda(impl, linear_bias):
    if impl == "liger":
        pytest.importorskip("liger_kernel")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        check_swiglu(impl, "cuda", linear_bias)
    finally:
        torch.set_float32_matmul_precision(before)


def test_swiglu_says_what_it_cannot_run():
    cpu = torch.device("cpu")
    for impl in ("auto", "torch", "xformers"):
        assert SwiGLU(64, False, impl=impl).unsupported(cpu) == []
    assert SwiGLU(64, False, impl="liger").unsupported(cpu) == [
        "model.ffn.impl=liger needs a CUDA GPU, got cpu: use auto"
    ]


# ---- norms


@pytest.mark.parametrize("linear_bias", [False, True])
def test_norms_are_their_formulas(linear_bias):
    torch.manual_seed(0)
    x = 3 * torch.randn(4, 16) + 2
    layer_norm = registry.load_class("model/norm", "layernorm")(16, linear_bias, eps=0.1)
    rms_norm = registry.load_class("model/norm", "rmsnorm")(16, linear_bias, eps=0.1)
    for layer in (layer_norm, rms_norm):
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    assert (layer_norm.bias is not None) == linear_bias
    assert len(list(rms_norm.parameters())) == 1
    centered = x - x.mean(-1, keepdim=True)
    shift = layer_norm.bias if linear_bias else 0.0
    want = centered / (centered.square().mean(-1, keepdim=True) + 0.1).sqrt() * layer_norm.weight
    assert torch.allclose(layer_norm(x), want + shift, atol=1e-5)
    want = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * rms_norm.weight
    assert torch.allclose(rms_norm(x), want, atol=1e-5)

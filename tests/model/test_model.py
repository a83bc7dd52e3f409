"""The whole model: packing, masks, initialization, its state dict, and the notebook API."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import xftrain
from tests.model.attn.cells import BACKENDS, BIASES, NUM_KV_HEADS, PACKED_LENGTHS
from tests.models import VOCAB, gpt, options, random_tokens, with_bias
from xftrain.benchmark.reference import relative_error
from xftrain.commands.builder import assemble
from xftrain.config import registry
from xftrain.config.compose import compose
from xftrain.data.counting_packed import CountingPacked
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnShape, BiasRecipe
from xftrain.model.gpt import GPT

ON_CPU = [name for name in BACKENDS if name != "flex"]  # which has no backward there
TOKENS = random_tokens(1, sum(PACKED_LENGTHS))


def logits_and_grads(
    model: GPT, tokens_BM: Tensor, seqlens: tuple[int, ...] | None, dlogits_BMV: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits_BMV = model(tokens_BM, seqlens)
    (logits_BMV.float() * dlogits_BMV).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits_BMV.detach(), grads


def packed_and_separate(
    model: GPT, seqlens: tuple[int, ...], device: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and every gradient of documents in one row, and of the same documents one by one."""
    tokens = TOKENS.to(device)
    weights = torch.randn(*tokens.shape, VOCAB, generator=torch.Generator().manual_seed(1))
    weights = weights.to(device)
    packed, packed_grads = logits_and_grads(model, tokens, seqlens, weights)
    logits, total = [], {}
    for document, document_weights in zip(
        tokens.split(seqlens, 1), weights.split(seqlens, 1), strict=True
    ):
        one, grads = logits_and_grads(model, document, None, document_weights)
        logits.append(one)
        total = {name: total.get(name, 0) + grad for name, grad in grads.items()}
    assert packed_grads.keys() == total.keys() == dict(model.named_parameters()).keys()
    pairs = {name: (packed_grads[name], total[name]) for name in total}
    return {"logits": (packed, torch.cat(logits, 1)), **pairs}


def check_packed(model: GPT, seqlens: tuple[int, ...], device: str, tolerance: float) -> None:
    for name, (packed, separate) in packed_and_separate(model, seqlens, device).items():
        assert relative_error(packed, separate.double()) < tolerance, name


# ---- packing and masks


@pytest.mark.parametrize(("pos", "heads"), [("learned", "mha"), ("rope", "gqa"), ("none", "mqa")])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("attn", ON_CPU)
def test_packed_equals_separate(attn, bias, pos, heads):
    model = gpt(attn=attn, bias=bias, pos=pos, heads=heads, scale=5.0)
    check_packed(model, PACKED_LENGTHS, "cpu", 5e-6)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 5e-5), (torch.bfloat16, 4e-2)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("attn", BACKENDS)
def test_packed_equals_separate_on_cuda(attn, bias, dtype, tolerance):
    # flex is compiled for every length
    seqlens = (65, 65) if attn == "flex" else PACKED_LENGTHS
    model = gpt(attn=attn, bias=bias, pos="rope", heads="gqa", scale=5.0).cuda()
    for row in (seqlens, *((n,) for n in seqlens)):
        place = (torch.device("cuda"), dtype)
        seqlens_of_row = row if len(row) > 1 else None
        ((call, _),) = model.attention_cases(1, sum(row), seqlens_of_row, place)
        if reasons := model.backend.unsupported(*call):
            pytest.skip(f"refused, see test_parity.py: {'; '.join(reasons)}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            check_packed(model, seqlens, "cuda", tolerance)
    finally:
        torch.set_float32_matmul_precision(before)


def without_boundary(
    recipe: BiasRecipe, num_heads: int, seqlens: tuple[int, ...] | None
) -> AttnBias:
    """Forgets the documents, which is the bug that the leak test is to find."""
    return recipe.build(num_heads, None)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("attn", ON_CPU)
def test_no_document_sees_another_and_without_the_boundary_it_does(attn, bias, monkeypatch):
    data = CountingPacked(32, 2, seed=0, vocab_size=VOCAB)
    batch = next(b for step in range(99) if len((b := data.batch("train", step)).seqlens) >= 3)
    first = batch.seqlens[0]
    other = batch.tokens_BM.clone()
    other[:, :first] = (other[:, :first] + 7) % VOCAB
    model = gpt(attn=attn, bias=bias, scale=5.0)

    def later_documents_differ() -> bool:
        one, two = (model(tokens, batch.seqlens) for tokens in (batch.tokens_BM, other))
        return not torch.equal(one[:, first:], two[:, first:])

    with torch.no_grad():
        assert not later_documents_differ()
        # positions still restart; a recipe that forgets the documents is refused
        monkeypatch.setattr("xftrain.model.layer_spec.built_bias", without_boundary)
        assert later_documents_differ()


@pytest.mark.parametrize("seqlens", [None, PACKED_LENGTHS], ids=["rows", "packed"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("attn", ON_CPU)
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits(attn, bias, seqlens):
    model = gpt(attn=attn, bias=bias, pos="rope", heads="gqa", scale=5.0)
    changed, at = TOKENS.clone(), 50  # inside the second document
    changed[:, at] = (changed[:, at] + 1) % VOCAB
    one, two = model(TOKENS, seqlens), model(changed, seqlens)

    assert not torch.equal(one[:, at], two[:, at])
    # `full` sees what follows, which shows that this test can fail
    assert torch.equal(one[:, :at], two[:, :at]) == (bias != "full")
    if "window" in bias:
        # two layers of 20 keys reach 38 positions back
        assert not torch.equal(one[:, at + 38], two[:, at + 38])
        assert torch.equal(one[:, at + 39 :], two[:, at + 39 :])


@torch.no_grad()
def test_rows_do_not_see_each_other():
    model = gpt(scale=5.0)
    tokens = random_tokens(3, 40)
    assert torch.allclose(model(tokens)[1:2], model(tokens[1:2]), atol=1e-5)


# ---- initialization


# ---- the state dict


# ---- forward


@pytest.mark.parametrize("attn", ON_CPU)
def test_activation_checkpointing_changes_nothing(attn):
    chosen = {"attn": attn, "pos": "rope", "heads": "gqa", "dropout": 0.2, "scale": 5.0}
    weights = torch.randn(1, 130, VOCAB)
    results = []
    for recompute in (False, True, "ffn"):
        model = gpt(**chosen, activation_checkpointing=recompute)
        calls: dict[str, int] = {"ffn": 0, "heads": 0}
        for name in calls:

            def counted(*_, calls=calls, name=name):
                calls[name] += 1

            model.blocks[0].get_submodule(name).register_forward_pre_hook(counted)
        torch.manual_seed(5)  # of dropout, which must drop the same again
        results.append(logits_and_grads(model, TOKENS, PACKED_LENGTHS, weights))
        assert calls == {"ffn": 1 + bool(recompute), "heads": 1 + (recompute is True)}
    (logits, grads), *others = results
    for other_logits, other_grads in others:
        assert torch.equal(logits, other_logits)
        assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


@pytest.mark.parametrize("norm", registry.option_names("model/norm"))
def test_in_bf16_blocks_add_to_bfloat16_and_stay_near_float32(norm):
    reached, results = {}, {}
    for kind in ("auto", "float32", "not mixed"):
        model = gpt(norm=norm, pos="rope", residual_dtype=kind if kind != "not mixed" else "auto")
        seen: list[torch.dtype] = []
        for block in model.blocks:
            block.register_forward_hook(lambda _, x, y, seen=seen: seen.append(x[0].dtype))
        model.norm.register_forward_hook(
            lambda _, x, y, seen=seen: seen.extend([x[0].dtype, y.dtype])
        )
        weights = torch.randn(*TOKENS.shape, VOCAB, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "not mixed"):
            results[kind] = logits_and_grads(model, TOKENS, PACKED_LENGTHS, weights)[1]
        (reached[kind],) = set(seen)
    wide = torch.float32
    assert reached == {"auto": torch.bfloat16, "float32": wide, "not mixed": wide}
    for kind in ("auto", "float32"):
        for name, grad in results["not mixed"].items():
            assert relative_error(results[kind][name], grad.double()) < 0.05, (kind, name)


def test_more_tokens_than_positions_are_refused():
    model = gpt()
    with pytest.raises(
        ConfigError, match=r"model\.pos\.max_positions is 130.*131.*model\.pos=rope"
    ):
        model(random_tokens(1, 131))
    # a row may be longer where its documents are not
    assert model(random_tokens(1, 200), (130, 70)).shape == (1, 200, VOCAB)
    with pytest.raises(ConfigError, match="model.pos.max_positions"):
        model(random_tokens(1, 200), (69, 131))
    assert gpt(pos="rope")(random_tokens(1, 200)).shape == (1, 200, VOCAB)


def test_the_handle_is_kept_while_batches_stay_alike():
    model = gpt(attn="sdpa", bias="window")
    calls = []
    prepare = model.backend.prepare_handle
    model.backend.prepare_handle = lambda call: calls.append(call) or prepare(call)
    for shape, seqlens in [((2, 64), None), ((2, 64), None), ((1, 64), (30, 34))]:
        model(random_tokens(*shape), seqlens)
    assert len(calls) == 2


def test_inference_mode_before_training():
    # the mask made in inference mode was kept, and the backward pass of the next batch refused it
    model = gpt(attn="sdpa", bias="window")
    with torch.inference_mode():
        model(TOKENS)
    model(TOKENS).sum().backward()


def test_the_additive_bias_of_a_recipe_of_ones_own_is_used():
    class Diagonal:
        """Hides everything but a token itself, as a tensor."""

        def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
            hidden = torch.full((130, 130), -math.inf).fill_diagonal_(0.0)
            return AttnBias(additive_HMM=hidden[None])

    for attn in ON_CPU:
        model = gpt(attn=attn, scale=5.0)
        with_bias(model, lambda _: Diagonal())
        with torch.no_grad():
            one = model(TOKENS)
            two = model(TOKENS.flip(1).roll(1, 1))
        same = TOKENS == TOKENS.flip(1).roll(1, 1)
        assert same.any() and not same.all()
        assert torch.equal((one == two).all(-1), same)


def test_the_notebook_api():
    cfg = xftrain.compose("model.dim=32", "model.num_heads=4", "model.attn=naive", "seq=16")
    model = xftrain.build_model(cfg)
    assert isinstance(model, GPT)
    assert model.vocab_size == 64  # counting's, from the data
    tokens = random_tokens(1, 16)
    assert model(tokens).shape == (1, 16, 64)
    assert model(tokens, seqlens=(10, 6)).shape == (1, 16, 64)
    again = xftrain.build_model(cfg)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(("asked", "rows"), [("null", 128), ("100", 100)])
def test_rows_of_the_embedding(asked, rows):
    # 65 tokens are rounded up to a multiple of 64, unless a number was asked for
    cfg = compose("model.dim=32", "data.vocab_size=65", f"model.vocab_size={asked}")
    assert xftrain.build_model(cfg).vocab_size == rows


def test_shape_letters_of_grouped_heads():
    for heads, num_kv_heads in NUM_KV_HEADS.items():
        model = assemble(options(heads=heads, num_heads=8).model, VOCAB)
        ((call, _),) = model.attention_cases(2, 16, None)
        assert call.shape == AttnShape(B=2, M=16, H=8, G=num_kv_heads, K=8)

"""The predicted peak of a whole training step against what is alive in it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.memory.measured import (
    CPU,
    NOTHING,
    PLANS,
    Alive,
    batch_of,
    steps,
)
from tests.models import VOCAB, changed, options
from xftrain.commands.builder import assemble, build_loss
from xftrain.kernels import fused_adamw
from xftrain.loss.full import Full
from xftrain.memory.prediction import predict
from xftrain.model.block import RecomputePlan
from xftrain.optim.adamw import AdamW


@pytest.mark.parametrize("recomputed", PLANS, ids=str)
@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("loss", "vocab_size", "chosen"),
    [
        ({"name": "full"}, 4096, {}),
        ({"name": "full"}, VOCAB, {"attn": "naive"}),
        ({"name": "full"}, VOCAB, {"bias": "alibi", "pos": "none"}),
        ({"name": "chunked", "chunk_tokens": 64}, 4096, {"ffn": "gelu", "tie_embeddings": True}),
        ({"name": "fused", "chunk_tokens": 64}, 4096, {"norm": "rmsnorm", "heads": "gqa"}),
        ({"name": "full"}, VOCAB, {"qk_norm": True, "norm_embedding": True}),
    ],
)
def test_a_step_has_as_much_alive_as_is_predicted(loss, vocab_size, chosen, is_mixed, recomputed):
    settings = options(**{"attn": "sdpa", "num_layers": 4} | chosen)
    precision = "bf16-mixed" if is_mixed else "32-true"
    settings = changed(settings, {"trainer.precision": precision, "loss": loss})
    model, loss = assemble(settings.model, vocab_size), build_loss(settings)
    model.recompute_plan = recomputed
    batch = batch_of(4, 128)
    dtype = torch.bfloat16 if is_mixed else torch.float32
    predicted = predict(settings, model, loss, batch, dtype, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step, optimizer = steps(model, loss, batch, is_mixed)
        step()
        weights = list(model.parameters())
        moments = [
            moment for state in optimizer.state.values() for moment in state.values() if moment.ndim
        ]
        assert predicted.weights == sum(weight.nbytes for weight in weights)
        assert predicted.gradients == sum(weight.grad.nbytes for weight in weights)
        assert predicted.optimizer == sum(moment.nbytes for moment in moments)
        with Alive() as alive:
            for tensor in (*weights, *moments, *(weight.grad for weight in weights)):
                alive.add(tensor)
            step()
    assert 0.97 < predicted.total(recomputed) / alive.peak < 1.3


def test_nothing_is_allocated_drawn_or_left_behind():
    settings = options(dropout=0.1, heads="gqa", attn="sdpa")
    model = assemble(settings.model, VOCAB)
    state = torch.get_rng_state()
    peak = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(weight, FakeTensor) for weight in model.parameters())

    with torch.device("meta"):
        model = assemble(settings.model, VOCAB)
    assert predict(settings, model, Full(), batch_of(), torch.float32, CPU) == peak

    terabytes = {"model.dim": 2**15, "model.num_heads": 2**9, "model.num_layers": 100}
    settings = changed(settings, terabytes)
    with torch.device("meta"):
        model = assemble(settings.model, VOCAB)
    peak = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    assert peak.weights > 2**40 and peak.total(RecomputePlan(100)) < peak.total(NOTHING)


def test_the_state_in_other_settings():
    settings = options(attn="sdpa")
    model = assemble(settings.model, VOCAB)
    usual = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    assert usual.casts == 0
    settings = changed(settings, {"trainer.precision": "bf16-true", "trainer.devices": 2})
    half = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    assert (half.weights, half.optimizer) == (usual.weights // 2, usual.optimizer // 2)
    assert half.gradients == half.weights and half.casts == 0
    model.embed.weight.requires_grad_(False)
    frozen = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    assert half.optimizer - frozen.optimizer == 2 * 2 * model.embed.weight.numel()
    assert frozen.weights == half.weights


def test_gradients_of_large_layers_are_as_narrow_as_their_copies(monkeypatch):
    settings = changed(options(attn="sdpa"), {"trainer.precision": "bf16-mixed"})
    model = assemble(settings.model, VOCAB)
    usual = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    monkeypatch.setattr(AdamW, "uses_fused_adamw", lambda self, device: self.impl == "auto")
    monkeypatch.setattr(fused_adamw, "_LARGE", 64 * 64)
    less = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    auto = changed(settings, {"trainer.precision": "auto"})  # as what it is by now
    assert predict(auto, model, Full(), batch_of(), torch.bfloat16, CPU) == less
    large = sum(w.numel() for w in model.blocks.parameters() if w.numel() >= 64 * 64)
    assert large and usual.gradients - less.gradients == 2 * large
    for devices, batches, times in ((2, 1, 1), (1, 2, 1), (2, 2, 2)):
        keys = {"trainer.devices": devices, "trainer.accumulate_grad_batches": batches}
        peak = predict(changed(auto, keys), model, Full(), batch_of(), torch.bfloat16, CPU)
        assert peak.gradients == times * usual.gradients
    peak = predict(settings, model, Full(), batch_of(), torch.float16, CPU)
    assert peak.gradients == usual.gradients
    for kind, gradients in (("Own", usual.gradients), ("Harmless", less.gradients)):
        own = {"_target_": f"tests.train.test_bf16_weights.{kind}"}
        with_own = changed(auto, {"callbacks": {"own": own}})
        peak = predict(with_own, model, Full(), batch_of(), torch.bfloat16, CPU)
        assert peak.gradients == gradients


@pytest.mark.parametrize("budget", [0.5, 0.0])
def test_compiled_blocks_with_a_budget_make_the_rest_again(budget):
    settings = changed(options(attn="sdpa"), {"compile": True})
    model = assemble(settings.model, VOCAB)
    whole = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    settings = changed(settings, {"model.activation_budget": budget})
    less = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    for all_kept, some_kept in zip(whole.layers, less.layers, strict=True):
        left_out = (1 - budget) * (all_kept.saved - all_kept.input)
        assert all_kept.saved - some_kept.saved == pytest.approx(left_out, abs=1)
        assert some_kept.saved + some_kept.backward == all_kept.saved + all_kept.backward


def test_gpt_124m_on_an_h100_as_it_was_measured():
    # 14.1 GiB with all logits at once in one chunk; compiled, bf16-mixed; the casts that CUDA's
    # autocast makes for layer norms are none of what compiled blocks keep
    settings = options(
        **{"attn": "sdpa", "ffn": "gelu", "num_layers": 12, "num_heads": 12, "dim": 768},
        tie_embeddings=True,
    )
    more = {"model.pos.max_positions": 1024, "compile": True, "trainer.precision": "bf16-mixed"}
    settings = changed(settings, more)
    with torch.device("meta"):
        model = assemble(settings.model, 50304)
    peak = predict(settings, model, Full(), batch_of(32, 1024), torch.bfloat16, CPU)
    state = peak.weights + peak.gradients + peak.optimizer
    assert state / 2**30 == pytest.approx(1.85, abs=0.01)
    assert peak.layers[0].saved == pytest.approx(16 * 768 * 2 * 32 * 1024, rel=0.01)
    logits = 32 * 1024 * 50304 * 2
    assert (peak.state + peak.activations(NOTHING) + logits) / 2**30 == pytest.approx(
        14.1, rel=0.05
    )


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["full", "fused"])
@pytest.mark.parametrize("recomputed", PLANS, ids=str)
def test_the_peak_of_a_gpu_is_as_predicted(name, compiled, recomputed):
    device = torch.device("cuda", 0)
    chosen = {"attn": "sdpa", "ffn": "gelu", "num_layers": 4, "dim": 512, "num_heads": 8}
    settings = options(**chosen, pos="rope")
    more = {"compile": compiled, "loss": name, "trainer.precision": "bf16-mixed"}
    settings = changed(settings, more | {"optim.impl": "torch"})  # what `steps` has
    model, loss = assemble(settings.model, 8192).to(device), build_loss(settings)
    model.recompute_plan = recomputed
    batch = batch_of(32, 512).to(device)
    allocated = torch.cuda.memory_allocated(device)
    peak = predict(settings, model, loss, batch, torch.bfloat16, device)
    assert torch.cuda.memory_allocated(device) == allocated
    if compiled:
        model.compile_blocks(packed=False)
    step, _ = steps(model, loss, batch, True, "cuda")
    for _ in range(2):
        step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    measured = torch.cuda.max_memory_allocated(device) - (allocated - peak.weights)
    assert 0.9 < peak.total(recomputed) / measured < 1.3

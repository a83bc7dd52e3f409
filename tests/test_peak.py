"""The predicted peak of memory against what autograd keeps, what is alive, and what a run does."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.models import VOCAB, gpt, options, random_tokens
from tests.training.runs import last, model_and_data, run, same_weights, small
from xftrain import registry
from xftrain.builder import assemble, build_loss
from xftrain.config import validate
from xftrain.data.counting import Counting
from xftrain.interfaces import Batch, Loss, positions_of
from xftrain.losses.full import Full
from xftrain.memory import total_memory_bytes, usable_memory_bytes
from xftrain.model import GPT, Block, Recomputed
from xftrain.oom import _changed, out_of_memory
from xftrain.peak.figures import LayerBytes, Peak
from xftrain.peak.layers import run_layers
from xftrain.peak.plan import _warning
from xftrain.peak.prediction import predict
from xftrain.prepare import Prepared
from xftrain.training import fused_adamw
from xftrain.training.optim.adamw import AdamW

CPU = torch.device("cpu")
NOTHING = Recomputed()
PLANS = [NOTHING, Recomputed(ffns=2), Recomputed(2, ffns=4), Recomputed(ffns=4), Recomputed(4)]
ROWS, TOKENS = 3, 120
VARIANTS = [
    {},
    *({"ffn": name} for name in registry.names("model/ffn")),
    *({"norm": name} for name in registry.names("model/norm")),
    *({"pos": name} for name in registry.names("model/pos")),
    *({"heads": name, "pos": "rope"} for name in registry.names("model/heads")),
    {"attn": "naive"},
    {"attn": "naive", "heads": "gqa", "pos": "rope"},
    {"bias": "alibi"},
    {"bias": "alibi", "attn": "xformers"},
    {"residual_dtype": "float32"},
    {"linear_bias": True, "dropout": 0.1},
]


def batch_of(rows: int = ROWS, tokens: int = TOKENS) -> Batch:
    tokens_BM = random_tokens(rows, tokens)
    return Batch(tokens_BM, tokens_BM, positions_of(tokens, None))


def autocast(is_mixed: bool, device: str = "cpu"):
    return torch.autocast(device, torch.bfloat16) if is_mixed else contextlib.nullcontext()


def kept_by_block(
    chosen: dict, is_mixed: bool, *, compiled: bool, recomputes_ffn: bool = False
) -> tuple[int, int]:
    """Bytes of activations, and of weights in another dtype, that a real block keeps on the CPU."""
    torch._dynamo.reset()
    model = gpt(**{"attn": "sdpa"} | chosen)
    block, weights = model.blocks[0], list(model.blocks[0].parameters())
    shapes = {tuple(w.shape) for w in weights} | {tuple(w.t().shape) for w in weights}
    narrow = is_mixed and model.residual_dtype == "auto"
    x_BMD = torch.randn(ROWS, TOKENS, 64, dtype=torch.bfloat16 if narrow else torch.float32)
    rotation = model.pos.prepare(positions_of(TOKENS, None))
    outside = {t.untyped_storage().data_ptr() for t in (*weights, *(rotation or ()))}
    found: tuple[dict[int, int], dict[int, int]] = ({}, {})
    held = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage.data_ptr() not in outside:
            found[tuple(tensor.shape) in shapes][storage.data_ptr()] = storage.nbytes()
        return tensor

    run = torch.compile(block, backend="aot_eager_decomp_partition") if compiled else block
    with autocast(is_mixed), saved_tensors_hooks(note, lambda tensor: tensor):
        handle = model.prepare(ROWS, TOKENS)
        run(x_BMD.requires_grad_(), model.backend, handle[0], rotation, recomputes_ffn)
    activations, casts = (sum(sizes.values()) for sizes in found)
    return activations, casts


def check_block(chosen: dict, is_mixed: bool, *, compiled: bool, rel: float) -> None:
    model = gpt(**{"attn": "sdpa"} | chosen)
    dtype = torch.bfloat16 if is_mixed else torch.float32
    layers = run_layers(model, batch_of(), dtype, CPU, is_mixed=is_mixed, is_compiled=compiled)
    activations, casts = kept_by_block(chosen, is_mixed, compiled=compiled)
    assert layers.blocks[0].kept.activations == pytest.approx(activations, rel=rel)
    assert layers.blocks[0].kept.casts == casts


@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize("chosen", VARIANTS, ids=str)
def test_a_block_keeps_what_is_predicted(chosen, is_mixed):
    check_block(chosen, is_mixed, compiled=False, rel=0.02)


@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"ffn": "gelu"},
        {"residual_dtype": "float32"},
        {"ffn": "swiglu", "norm": "rmsnorm", "heads": "gqa", "pos": "rope"},
        {"attn": "naive"},
    ],
    ids=str,
)
def test_a_compiled_block_keeps_what_is_predicted(chosen, is_mixed):
    check_block(chosen, is_mixed, compiled=True, rel=0.03)


def check_ffn(ffn: str, is_mixed: bool) -> None:
    chosen, dtype = {"attn": "sdpa", "ffn": ffn}, torch.bfloat16 if is_mixed else torch.float32
    layers = run_layers(gpt(**chosen), batch_of(), dtype, CPU, is_mixed=is_mixed, is_compiled=True)
    whole, less = (
        kept_by_block(chosen, is_mixed, compiled=True, recomputes_ffn=recomputes)[0]
        for recomputes in (False, True)
    )
    assert layers.blocks[0].ffn == pytest.approx(whole - less, rel=0.03)
    assert less < 0.6 * whole


@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize("ffn", registry.names("model/ffn"))
def test_a_compiled_block_that_recomputes_its_ffn_keeps_so_much_less(ffn, is_mixed):
    check_ffn(ffn, is_mixed)


@pytest.mark.parametrize("ffn", ["gelu", "swiglu", "geglu"])
def test_products_that_are_chosen_keep_what_is_predicted(monkeypatch, ffn):
    for place in ("layers.linear.chooses", "layers.ffn.gelu.chooses", "layers.feedforward.gates"):
        monkeypatch.setattr(f"xftrain.{place}", lambda *_: True)
    check_block({"ffn": ffn}, True, compiled=False, rel=0.02)
    check_block({"ffn": ffn}, True, compiled=True, rel=0.03)
    check_ffn(ffn, True)


# ---- the whole step


class Alive(TorchDispatchMode):
    """The most bytes of tensors that are alive at once, of those that are ever used."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._alive.values()))
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive or self._alive[storage._cdata][0].expired():
            self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())


def steps(model: GPT, loss: Loss, batch: Batch, is_mixed: bool, device: str = "cpu"):
    """A function that makes a training step as Lightning does, and the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        with autocast(is_mixed, device):
            handle = model.prepare(*batch.shape_BM)
            x_BMD = model.hidden(batch.tokens_BM, batch.positions_1M, handle)
            sums = loss(
                x_BMD.flatten(0, 1),
                model.head.weight,
                batch.labels_BM.flatten(),
                with_accuracy=False,
            )
            del x_BMD
        optimizer.zero_grad()  # which comes after the forward pass
        sums.loss.backward()
        optimizer.step()

    return step, optimizer


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
    ],
)
def test_a_step_has_as_much_alive_as_is_predicted(loss, vocab_size, chosen, is_mixed, recomputed):
    settings = options(**{"attn": "sdpa", "num_layers": 4} | chosen)
    settings["trainer"]["precision"] = "bf16-mixed" if is_mixed else "32-true"
    settings["loss"] = loss
    model, loss = assemble(settings, vocab_size), build_loss(settings)
    model.recomputed = recomputed
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
    model = assemble(settings, VOCAB)
    state = torch.get_rng_state()
    peak = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(weight, FakeTensor) for weight in model.parameters())

    with torch.device("meta"):
        model = assemble(settings, VOCAB)
    assert predict(settings, model, Full(), batch_of(), torch.float32, CPU) == peak

    settings["model"] |= {"dim": 2**15, "num_heads": 2**9, "num_layers": 100}  # terabytes
    with torch.device("meta"):
        model = assemble(settings, VOCAB)
    peak = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    assert peak.weights > 2**40 and peak.total(Recomputed(100)) < peak.total(NOTHING)


def test_the_state_in_other_settings():
    settings = options(attn="sdpa")
    model = assemble(settings, VOCAB)
    usual = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    assert usual.casts == 0
    settings["trainer"] |= {"precision": "bf16-true", "devices": 2}
    half = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    assert (half.weights, half.optimizer) == (usual.weights // 2, usual.optimizer // 2)
    assert half.gradients == half.weights and half.casts == 0
    model.embed.weight.requires_grad_(False)
    frozen = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    assert half.optimizer - frozen.optimizer == 2 * 2 * model.embed.weight.numel()
    assert frozen.weights == half.weights


def test_gradients_of_large_layers_are_as_narrow_as_their_copies(monkeypatch):
    settings = options(attn="sdpa")
    settings["trainer"]["precision"] = "bf16-mixed"
    model = assemble(settings, VOCAB)
    usual = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    monkeypatch.setattr(AdamW, "is_own", lambda self, device: self.impl == "auto")
    monkeypatch.setattr(fused_adamw, "_LARGE", 64 * 64)
    less = predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU)
    settings["trainer"]["precision"] = "auto"  # as what it is by now
    assert predict(settings, model, Full(), batch_of(), torch.bfloat16, CPU) == less
    large = sum(w.numel() for w in model.blocks.parameters() if w.numel() >= 64 * 64)
    assert large and usual.gradients - less.gradients == 2 * large
    for devices, batches, times in ((2, 1, 1), (1, 2, 1), (2, 2, 2)):
        change = {"devices": devices, "accumulate_grad_batches": batches}
        changed = settings | {"trainer": settings["trainer"] | change}
        peak = predict(changed, model, Full(), batch_of(), torch.bfloat16, CPU)
        assert peak.gradients == times * usual.gradients
    peak = predict(settings, model, Full(), batch_of(), torch.float16, CPU)
    assert peak.gradients == usual.gradients
    for kind, gradients in (("Own", usual.gradients), ("Harmless", less.gradients)):
        own = {"_target_": f"tests.training.test_fused_adamw.{kind}"}
        changed = settings | {"callbacks": {"own": own, "sample": None}}
        peak = predict(changed, model, Full(), batch_of(), torch.bfloat16, CPU)
        assert peak.gradients == gradients


@pytest.mark.parametrize("budget", [0.5, 0.0])
def test_compiled_blocks_with_a_budget_make_the_rest_again(budget):
    settings = options(attn="sdpa") | {"compile": True}
    model = assemble(settings, VOCAB)
    whole = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    settings["model"]["activation_budget"] = budget
    less = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    for all_kept, some_kept in zip(whole.layers, less.layers, strict=True):
        left_out = (1 - budget) * (all_kept.kept - all_kept.input)
        assert all_kept.kept - some_kept.kept == pytest.approx(left_out, abs=1)
        assert some_kept.kept + some_kept.backward == all_kept.kept + all_kept.backward


def test_gpt_124m_on_an_h100_as_it_was_measured():
    # 14.1 GiB with all logits at once in one chunk; compiled, bf16-mixed; the casts that CUDA's
    # autocast makes for layer norms are none of what compiled blocks keep
    settings = options(
        **{"attn": "sdpa", "ffn": "gelu", "num_layers": 12, "num_heads": 12, "dim": 768},
        tie_embeddings=True,
    )
    settings["model"]["pos"]["max_positions"] = 1024
    settings |= {"compile": True, "trainer": settings["trainer"] | {"precision": "bf16-mixed"}}
    with torch.device("meta"):
        model = assemble(settings, 50304)
    peak = predict(settings, model, Full(), batch_of(32, 1024), torch.bfloat16, CPU)
    state = peak.weights + peak.gradients + peak.optimizer
    assert state / 2**30 == pytest.approx(1.85, abs=0.01)
    assert peak.layers[0].kept == pytest.approx(16 * 768 * 2 * 32 * 1024, rel=0.01)
    logits = 32 * 1024 * 50304 * 2
    assert (peak.state + peak.activations(NOTHING) + logits) / 2**30 == pytest.approx(
        14.1, rel=0.05
    )


# ---- how many blocks


peaks = st.builds(
    Peak,
    **dict.fromkeys(
        [field.name for field in dataclasses.fields(Peak) if field.name != "layers"],
        st.integers(0, 1000),
    ),
    layers=st.lists(st.builds(LayerBytes, *[st.integers(0, 1000)] * 5), min_size=1, max_size=9).map(
        tuple
    ),
)


@given(peak=peaks, limit=st.integers(0, 20000), more=st.integers(0, 2000))
def test_the_least_that_fits(peak, limit, more):
    plans, least = list(peak.plans()), peak.least(limit)
    assert plans[0] == NOTHING and plans[-1].blocks == peak.num_blocks
    assert not any(peak.fits(limit, less) for less in plans[: plans.index(least)])
    assert peak.fits(limit, least) or least == plans[-1]
    assert peak.least(limit + more) <= least


def limited(monkeypatch, limit: int) -> None:
    monkeypatch.setattr("xftrain.peak.plan.usable_memory_bytes", lambda device: limit)


SMALL = ("model.num_layers=3", "max_steps=3", "model.dropout=0.1")
AUTO = "model.activation_checkpointing=auto"


def small_peak(*overrides: str) -> Peak:
    settings = validate(small(*SMALL, *overrides))
    model, data = model_and_data(*SMALL, *overrides)
    batch = data.batch("train", 0)
    return predict(settings, model, build_loss(settings), batch, torch.float32, CPU)


def test_auto_recomputes_some_blocks_and_changes_nothing(tmp_path, monkeypatch, caplog):
    forward, calls = Block.forward, []

    def counted(self, x_BMD, *more):
        if torch.is_grad_enabled() and not isinstance(x_BMD, FakeTensor):
            calls.append(1)
        return forward(self, x_BMD, *more)

    monkeypatch.setattr(Block, "forward", counted)
    run(tmp_path / "kept", *SMALL)
    assert len(calls) == 3 * 3

    peak = small_peak()
    for plan, in_a_step, said in (
        (Recomputed(ffns=2), 3, "; the feed-forwards of 2 of 3 blocks are recomputed to fit"),
        (Recomputed(1, 3), 4, "; 1 of 3 blocks and the feed-forwards of the others are recomputed"),
    ):
        limited(monkeypatch, peak.total(plan))
        calls.clear()
        with caplog.at_level(logging.INFO):
            result = run(tmp_path / "auto", *SMALL, AUTO)
        assert len(calls) == 3 * in_a_step
        assert said in caplog.text
        assert result["predicted_peak_mib"] == pytest.approx(peak.total(plan) / 2**20, abs=0.1)
        assert same_weights(last(tmp_path / "kept"), last(tmp_path / "auto"))


def test_the_line_of_the_log_adds_up(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, *SMALL, AUTO, "model.dim=256", "seq=128", "batch_tokens=2048")
    (line,) = re.findall("memory: .*", caplog.text)
    assert line.endswith("GiB; nothing is recomputed")
    total = int(line.split("about ")[1].split()[0])
    parts = [int(number) for number in re.findall(r" (\d+)[,)]", line)]
    assert len(parts) == 3 and abs(total - sum(parts)) <= 2 and min(parts) > 0


@pytest.mark.parametrize(
    ("how", "recomputed", "expected"),
    [
        (False, NOTHING, ["checkpointing=auto", "accumulate_grad_batches"]),
        (False, Recomputed(2), ["accumulate_grad_batches"]),
        ("cudagraphs", NOTHING, ["checkpointing=ffn", "_budget"]),
        ("cudagraphs", Recomputed(ffns=2), ["_budget"]),
    ],
)
def test_what_would_help_is_what_is_not_refused(how, recomputed, expected):
    settings = options(attn="sdpa") | {"compile": how}
    model = assemble(settings, VOCAB)
    model.recomputed = recomputed
    peak = predict(settings, model, Full(), batch_of(), torch.float32, CPU)
    said = _warning(settings, peak, model, Full(), 2**20)
    assert "a smaller data.batch_size" in said
    words = ["checkpointing=auto", "checkpointing=ffn", "_budget", "accumulate_grad_batches"]
    assert [word for word in words if word in said] == expected


def test_where_nothing_fits_it_is_said_with_what_would_help(tmp_path, monkeypatch, caplog):
    limited(monkeypatch, 2**20)
    for override in (AUTO, "model.activation_checkpointing=false"):
        caplog.clear()
        assert run(tmp_path, *SMALL, override, "loss=full")["status"] == "completed"
        (warning,) = [line for line in caplog.messages if "may not fit" in line]
        assert "data.batch_size" in warning and "loss=chunked" in warning and "\n" not in warning
        assert (AUTO in warning) == (override != AUTO)


class Foreign(nn.Module):
    """A feed-forward that reads a number, which a fake tensor has not, and remembers tensors."""

    def __init__(self, dim: int, linear_bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(dim, dim, bias=linear_bias)
        self.seen: list[Tensor] = []

    def forward(self, x_BMD: Tensor) -> Tensor:
        self.seen.append(x_BMD.detach())
        assert not any(isinstance(tensor, FakeTensor) for tensor in self.seen[:-1])
        return self.up(x_BMD) * float(x_BMD.detach().abs().amax().item() > -1)


@pytest.mark.parametrize("word", ["auto", "false"])
def test_a_layer_that_cannot_be_looked_into_is_survived(tmp_path, caplog, word):
    own = tmp_path / "own" / "model" / "ffn" / "foreign.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"_target_: {__name__}.Foreign\n")
    words = (*SMALL, "model.ffn=foreign", f"model.activation_checkpointing={word}")
    with caplog.at_level(logging.DEBUG, logger="xftrain"):
        result = run(tmp_path / "run", *words, config_dir=tmp_path / "own")
    assert result["status"] == "completed" and result["predicted_peak_mib"] is None
    assert "memory: not predicted: DataDependentOutputException" in caplog.text
    assert ("so all 3 blocks are recomputed" in caplog.text) == (word == "auto")


def test_the_limit_is_a_share_of_what_there_is():
    assert 2**28 < usable_memory_bytes(CPU) < total_memory_bytes(CPU)


def test_out_of_memory_names_what_saves_the_most_by_the_same_prediction():
    settings = options(attn="sdpa", num_layers=12, ffn="gelu")
    batch = batch_of(32, 1024)
    place, data = (CPU, "32-true", torch.float32), (Counting(1024, 32, 0), Full(), 50304, batch)
    said = str(out_of_memory(MemoryError(), Prepared(settings, {}, *place, None, *data)))
    found = re.findall(r"(?:most: |, )([^,]*)(?:, or auto[^,]*)? \(about ([\d.]+) GiB\)", said)
    assert found[0][0] == "loss=chunked"
    assert float(found[0][1]) == pytest.approx((32 - 4) * 1024 * 50304 * 12 / 2**30, rel=0.1)
    assert "model.activation_checkpointing=true, or auto" in said
    saved = [float(gib) for _, gib in found]
    assert len(saved) == 3 and saved == sorted(saved, reverse=True)

    graphed = settings | {"compile": "cudagraphs"}  # refuses most of that
    said = str(out_of_memory(MemoryError(), Prepared(graphed, {}, *place, None, *data)))
    assert "model.activation_checkpointing=ffn (about" in said
    assert "=true" not in said and "accumulate" not in said

    graphed["model"]["activation_checkpointing"] = "ffn"
    offered = [text for text, _ in _changed(Prepared(graphed, {}, *place, None, *data))]
    assert offered[0] == "model.activation_budget=0.5" and "checkpointing" not in " ".join(offered)


# ---- a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["full", "fused"])
@pytest.mark.parametrize("recomputed", PLANS, ids=str)
def test_the_peak_of_a_gpu_is_as_predicted(name, compiled, recomputed):
    device = torch.device("cuda", 0)
    chosen = {"attn": "sdpa", "ffn": "gelu", "num_layers": 4, "dim": 512, "num_heads": 8}
    settings = options(**chosen, pos="rope")
    settings |= {"compile": compiled, "loss": {"name": name}}
    settings["trainer"]["precision"] = "bf16-mixed"
    settings["optim"]["impl"] = "torch"  # what `steps` has
    model, loss = assemble(settings, 8192).to(device), build_loss(settings)
    model.recomputed = recomputed
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

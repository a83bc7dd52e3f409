"""A cell of the benchmark: its options, its key, its lengths and how it ended."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from xftrain.benchmark.benchmark import Benchmark
from xftrain.benchmark.callbacks.attention_sweep import AttentionSweep
from xftrain.benchmark.callbacks.packed import draw_lengths, waste_of
from xftrain.benchmark.callbacks.train_sweep import TrainSweep
from xftrain.benchmark.cells import attention_cell, kv_cache_bytes, name_of, nodes_of
from xftrain.benchmark.training import _DECISIVE, TrainCell
from xftrain.benchmark.worker import Unsupported, outcome
from xftrain.config.root_schema import Root
from xftrain.errors import ConfigError


def test_options_are_words_or_nodes_and_are_checked() -> None:
    nodes = nodes_of("model/bias", ["causal", {"name": "alibi", "impl": "dense"}])
    assert [name_of(node) for node in nodes] == ["causal", "alibi impl=dense"]
    for wrong in ("casual", {"name": "alibi", "imp": "dense"}, {"impl": "dense"}):
        with pytest.raises(ConfigError, match=r"model\.bias"):
            nodes_of("model/bias", [wrong])


def test_a_cell_has_a_key_of_its_own_and_the_heads_that_its_grouping_says() -> None:
    def cell(heads: str, **more: int) -> object:
        sizes = {"rows": 2, "num_heads": 16, "head_dim": 8, "length": 64} | more
        nodes = ({"name": "naive"}, {"name": "causal"}, {"name": heads})
        return attention_cell("s", *nodes, dtype="float32", device="cpu", **sizes)  # type: ignore[arg-type]

    groups = {heads: cell(heads).shape.G for heads in ("mha", "gqa", "mqa")}  # type: ignore[attr-defined]
    assert groups == {"mha": 16, "gqa": 2, "mqa": 1}
    keys = {cell(h, length=m).key for h in groups for m in (64, 128)}  # type: ignore[attr-defined]
    assert len(keys) == 6


def test_a_key_tells_all_that_a_figure_depends_on() -> None:
    # rows of another model were once taken for this one's, where the columns were the same
    options = {key: key for key in _DECISIVE}
    changed = {**options, "model": "other"}
    keys = {TrainCell("t", {"a": 1}, o, 1).key for o in (options, changed)}
    assert len(keys) == 2
    assert TrainCell("t", {"a": 1}, {**options, "tags": ["x"]}, 1).key in keys
    lengths = [(37, 120, 8, 200), (50, 107, 8, 200)]
    nodes = ("s", {"name": "naive"}, {"name": "causal"}, {"name": "mha"})
    sizes = {"rows": 1, "num_heads": 2, "head_dim": 8, "dtype": "float32", "device": "cpu"}
    assert len({attention_cell(*nodes, **sizes, seqlens=n).key for n in lengths}) == 2


def test_every_root_key_decides_about_figures_or_is_known_not_to() -> None:
    others = {
        "max_steps",
        "init_from",
        "init_weights",
        "ckpt",
        "ckpt_allow",
        "on_nonfinite",
        "max_skipped_steps",
        "tags",
    }
    roots = {field.name for field in dataclasses.fields(Root)}
    assert roots == {*_DECISIVE, *others, "callbacks", "logger"}


def test_lengths_are_drawn_alike_for_alike_seeds() -> None:
    for kind in ("uniform", "lognormal"):
        drawn = draw_lengths(kind, 200, 512, seed=3)
        assert drawn == draw_lengths(kind, 200, 512, seed=3) != draw_lengths(kind, 200, 512, seed=4)
        assert len(drawn) == 200 and 1 <= min(drawn) and max(drawn) <= 512


def test_waste_is_what_padding_adds() -> None:
    lengths = (37, 120, 8, 200)
    assert waste_of(lengths, "packed")["waste"] == 0
    padded = waste_of(lengths, "padded")
    assert padded["tokens"] == 800 and padded["waste"] == pytest.approx(1 - 365 / 800)


def test_the_cache_of_llama_2_7b_is_half_a_mib_a_token() -> None:
    # 32 layers, 32 heads of width 128 in 16 bits: 524,288 bytes
    assert kv_cache_bytes(32, 32, 128, torch.float16) == 2**19


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Unsupported("no kernel"), "unsupported", "no kernel"),
        (ConfigError("model.x must be y."), "unsupported", "model.x must be y."),
        (MemoryError(), "oom", "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), "oom", "can't allocate"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "oom", "Tried to"),
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
    ],
)
def test_an_exception_says_how_a_cell_ended(error: Exception, status: str, said: str) -> None:
    found, reason = outcome(error)
    assert found == status and said in reason


@pytest.mark.parametrize(
    ("benchmark", "key"),
    [(AttentionSweep(lengths=[]), "lengths"), (TrainSweep(ffn=()), "ffn")],
)
def test_a_list_without_values_is_refused(benchmark: Benchmark, key: str) -> None:
    # one measured its default instead, the other nothing
    said = rf"callbacks\.{benchmark.name}\.{key} must have at least one value, got \[\]"
    with pytest.raises(ConfigError, match=said):
        benchmark.checked_jobs(None)  # type: ignore[arg-type]

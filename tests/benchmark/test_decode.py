"""The benchmark `decode`: what it times, the cache that it measures, and how it shows both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import VOCAB, changed, options
from xftrain.benchmark import decoding
from xftrain.benchmark.benchmark import Context
from xftrain.benchmark.callbacks.decode import Decode
from xftrain.benchmark.decoding import DecodeCell, measure_decoding, measure_round
from xftrain.benchmark.session import _row
from xftrain.benchmark.tensorboard import curves
from xftrain.benchmark.worker import Reporter
from xftrain.config.layer_pattern import checked_layers
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.generation.step import DecodeStep

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """Collecting garbage before each round takes longer than the rounds of these models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "settle", lambda device: None)
        yield


def _cells(cfg: RunConfig | None = None, **keys: Any) -> list[DecodeCell]:
    cfg = cfg or options()
    keys = {"contexts": [24, 40], "rows": 2, "num_new_tokens": 3, "rounds": 2} | keys
    context = Context(
        run_dir=Path("unused"),
        device=CPU,
        dtype="float32",
        options={"model": cfg.model.to_dict()},
        loggers=[],
        cfg=cfg,
        vocab_size=VOCAB,
    )
    (job,) = Decode(**keys).checked_jobs(context)
    return list(job.cells)  # type: ignore[arg-type]


def _with_layers(**parts: Any) -> RunConfig:
    """A model whose first layer has these parts of its own."""
    cfg = options()
    own = {name: getattr(cfg.model, name) for name in ("bias", "pos", "heads", "ffn")}
    node = {"pattern": ["a", "b"], "a": parts, "b": {}}
    return changed(cfg, {"model.layers": checked_layers(node, own, cfg.model.num_layers)})


class Recorded(Reporter):
    """A reporter without a process; it has the messages in their order."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, dict[str, Any]]] = []

    def _send(self, kind: str, index: int, fields: dict[str, Any]) -> None:
        self.messages.append((kind, index, fields))


def _rows(cells: Sequence[DecodeCell]) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of the cells as the report has them, and the order in which cells were measured."""
    reporter = Recorded()
    measure_decoding(cells, reporter)
    found = {i: fields for kind, i, fields in reporter.messages if kind == "row"}
    turns = [i for kind, i, _ in reporter.messages if kind == "begin"]
    return [_row(cell, found[i], []) for i, cell in enumerate(cells)], turns


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    rows, turns = _rows(_cells(window=8))
    assert turns == [*range(12), *range(12)]  # in rounds, so that drift affects all alike
    return rows


def test_the_cache_follows_heads_context_and_window(measured: list[dict[str, Any]]) -> None:
    found = {(r["bias"], r["M"], r["heads"]): r for r in measured}
    for (bias, length, heads), row in found.items():
        slots = 8 if bias.startswith("window") else length
        groups = {"mha": 4, "gqa": 2, "mqa": 1}[heads]
        assert (row["status"], row["cache_slots"], row["repetitions"]) == ("ok", slots, 2)
        # 2 texts, 2 layers, keys and values of width 16 in float32
        assert (
            row["cache_bytes"] == row["cache_formula_bytes"] == 2 * 2 * 2 * groups * 16 * 4 * slots
        )
        assert row["cache_mib"] * 2**20 == row["cache_bytes"]
        # each step adds a token to both texts
        assert row["tokens_per_s_p10"] <= row["tokens_per_s"] <= row["tokens_per_s_p90"]
        slowest = 2e3 / row["ms_per_token_p90"]
        assert 0 < slowest <= row["tokens_per_s"] <= 2e3 / row["ms_per_token_p10"]


def test_the_table_has_ratios_to_multi_head_attention_and_the_plots_their_curves(
    measured: list[dict[str, Any]],
) -> None:
    half = [r for r in measured if r["M"] == 40 and r["bias"] == "causal"]
    speeds = {"mha": 10.0, "gqa": 20.0, "mqa": 25.0}
    half = [r | {"tokens_per_s": speeds[r["heads"]]} for r in half]
    header, _, *lines = [line for line in Decode.summary(half, None).splitlines() if "|" in line]
    titles = [title.strip() for title in header.split("|")[1:-1]]
    cells = {line.split("|")[2].strip(): line.split("|")[1:-1] for line in lines}
    for heads, speed, cache in (("mha", 1, 1), ("gqa", 2, 0.5), ("mqa", 2.5, 0.25)):
        shown = dict(zip(titles, map(str.strip, cells[heads]), strict=True))
        assert float(shown["speed / MHA's"]) == speed
        assert float(shown["cache / MHA's"]) == cache
        assert shown["cache MiB"] == shown["by formula"] and shown["context"] == "40"
    assert len(titles) <= 9 and "bias causal" in Decode.summary(half, None)
    names = {name for _, name in curves(measured)}
    assert {"causal mha", "window window=8 mqa"} <= names
    assert {field for field, _ in curves(measured)} == {"tokens_per_s", "cache_mib"}
    figures = Decode.figures(measured)
    assert {name: len(made.axes) for name, made in figures.items()} == {"speed": 2, "cache": 2}


def test_a_cell_that_does_not_fit_has_a_row_and_the_formula(monkeypatch) -> None:
    real = decoding.Cache

    def limited(model: Any, num_rows: int, num_positions: int) -> Any:
        if num_positions == 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return real(model, num_rows, num_positions)

    monkeypatch.setattr(decoding, "Cache", limited)
    rows, turns = _rows(_cells(heads=("mqa",)))
    assert [row["status"] for row in rows] == ["ok", "oom"] and turns == [0, 1, 0]
    text = Decode.section(rows, None)
    assert "out of memory (1): causal mqa M=40: CUDA out of memory" in text
    (line,) = (line for line in text.splitlines() if line.startswith("|      40"))
    shown = [cell.strip() for cell in line.split("|")[1:-1]]
    # 20,480 bytes by the formula; no cell is multi-head, so there is no ratio
    assert shown[2:9] == ["1", "out of memory", "-", "-", "-", "0.020", "-"]


def test_only_the_last_steps_of_a_context_are_timed_and_no_prompt_is_read(monkeypatch) -> None:
    (cell,) = _cells(heads=("gqa",), contexts=[24])
    positions: list[int] = []
    timed: list[int] = []
    step, wall_ms = DecodeStep.__call__, decoding.wall_ms

    def recorded(self: DecodeStep, tokens_B: Any, positions_B: Any) -> Any:
        positions.extend(positions_B.unique().tolist())
        return step(self, tokens_B, positions_B)

    def watched(call: Any, device: torch.device) -> float:
        before = len(positions)
        ms = wall_ms(call, device)
        timed.extend(positions[before:])
        return ms

    monkeypatch.setattr(DecodeStep, "__call__", recorded)
    monkeypatch.setattr(decoding, "wall_ms", watched)
    assert measure_round(cell)["ms_per_token"] > 0
    assert positions == [17, 18, 19, 20, 21, 22, 23] and timed == [21, 22, 23]


def test_a_graph_is_captured_for_as_many_tokens_as_generation_would(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(decoding.Decoding, "capture", lambda _, num_left: asked.append(num_left))
    (cell,) = _cells(heads=("mqa",), contexts=[24], num_new_tokens=20)
    assert measure_round(cell)["uses_graph"] is False and asked == [20]


def test_logits_that_are_not_finite_are_no_speed(monkeypatch) -> None:
    (cell,) = _cells(heads=("mqa",), contexts=[24])
    monkeypatch.setattr(decoding.Decoding, "read", lambda _: (None, False))
    with pytest.raises(RuntimeError, match="not finite in float32"):
        measure_round(cell)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.sampled_from(["mha", "gqa", "mqa"]))
def test_the_formula_is_the_size_of_the_cache(length: int, window: int, heads: str) -> None:
    cfg = _with_layers(bias={"name": "window", "window": window})
    (cell,) = _cells(cfg, heads=(heads,), contexts=[length], num_new_tokens=1)
    assert cell.columns["bias"] == "layers a,b"  # rather than that of one of them
    assert measure_round(cell)["cache_bytes"] == cell.columns["cache_formula_bytes"]


def test_learned_positions_are_as_many_as_a_context_has() -> None:
    (cell,) = _cells(heads=("mha",), contexts=[200])  # the model has 130
    assert measure_round(cell)["cache_slots"] == 200
    short = {**cell.model, "pos": {**cell.model["pos"], "max_positions": 199}}
    with pytest.raises(ConfigError, match="199, too few for a document of 200"):
        measure_round(replace(cell, model=short))


def test_a_key_tells_model_sizes_and_rounds() -> None:
    kept = {"heads": ("mha",), "contexts": [24]}
    cells = [_cells(**kept)[0], _cells(**kept, rounds=3)[0], _cells(options(pos="rope"), **kept)[0]]
    cells += [_cells(options(ffn="gelu"), **kept)[0], _cells(**kept, dtype="bfloat16")[0]]
    assert len({cell.key for cell in cells}) == 5 and _cells(**kept)[0].key == cells[0].key


@pytest.mark.parametrize(
    ("keys", "parts", "said"),
    [
        ({"contexts": []}, {}, r"decode.contexts must have at least one value, got \[\]: give one"),
        ({"heads": ()}, {}, r"decode.heads must have at least one value, got \[\]: give one"),
        ({"contexts": [3]}, {}, "contexts must be longer than .*num_new_tokens, 3"),
        ({"heads": ("mhx",)}, {}, "did you mean mha"),
        ({"heads": ("mha", "mha")}, {}, "lists 'decode: causal mha float32 M=24' twice"),
        ({}, {"heads": "mqa"}, r"decode\.heads replaces .*layers\.a\.heads is set"),
        ({"window": 4}, {"bias": {"name": "window", "window": 8}}, r"decode\.window replaces"),
        ({"heads": ({"name": "gqa", "num_kv_heads": 3},)}, {}, "num_kv_heads"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(keys, parts, said) -> None:
    with pytest.raises(ConfigError, match=said):
        _cells(_with_layers(**parts), **keys)


@pytest.mark.cuda
def test_on_a_gpu_the_steps_are_a_graph() -> None:
    cells = _cells(contexts=[64, 96], num_new_tokens=32)[3:]
    cells = [replace(cell, device="cuda", dtype="bfloat16") for cell in cells]
    rows, _ = _rows(cells)
    assert all(row["status"] == "ok" and row["uses_graph"] for row in rows)

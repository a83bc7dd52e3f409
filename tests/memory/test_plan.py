"""How much is recomputed to fit, and what a run says of its memory."""

from __future__ import annotations

import dataclasses
import logging
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tests.memory.measured import (
    CPU,
    NOTHING,
    batch_of,
)
from tests.models import VOCAB, changed, options
from tests.train.runs import last, model_and_data, run, same_weights, small
from xftrain.commands.builder import assemble, build_loss
from xftrain.commands.out_of_memory import _changed, out_of_memory
from xftrain.commands.prepare import Prepared
from xftrain.config.compose import validate
from xftrain.data.counting import Counting
from xftrain.loss.full import Full
from xftrain.memory.peak import LayerBytes, Peak
from xftrain.memory.plan import _warning
from xftrain.memory.prediction import predict
from xftrain.model.block import Block, RecomputePlan
from xftrain.utils.device_memory import total_memory_bytes, usable_memory_bytes

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
    plans, least = list(peak.plans()), peak.cheapest_fitting_plan(limit)
    assert plans[0] == NOTHING and plans[-1].blocks == peak.num_blocks
    assert not any(peak.fits(limit, less) for less in plans[: plans.index(least)])
    assert peak.fits(limit, least) or least == plans[-1]
    assert peak.cheapest_fitting_plan(limit + more) <= least


def limited(monkeypatch, limit: int) -> None:
    monkeypatch.setattr("xftrain.memory.plan.usable_memory_bytes", lambda device: limit)


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
        (RecomputePlan(ffns=2), 3, "; the feed-forwards of 2 of 3 blocks are recomputed to fit"),
        (
            RecomputePlan(1, 3),
            4,
            "; 1 of 3 blocks and the feed-forwards of the others are recomputed",
        ),
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
        (False, RecomputePlan(2), ["accumulate_grad_batches"]),
        ("cudagraphs", NOTHING, ["checkpointing=ffn", "_budget"]),
        ("cudagraphs", RecomputePlan(ffns=2), ["_budget"]),
    ],
)
def test_what_would_help_is_what_is_not_refused(how, recomputed, expected):
    settings = changed(options(attn="sdpa"), {"compile": how})
    model = assemble(settings.model, VOCAB)
    model.recompute_plan = recomputed
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
    said = str(out_of_memory(MemoryError(), Prepared(settings, {}, *place, None, None, *data)))
    found = re.findall(r"(?:most: |, )([^,]*)(?:, or auto[^,]*)? \(about ([\d.]+) GiB\)", said)
    assert found[0][0] == "loss=chunked"
    assert float(found[0][1]) == pytest.approx((32 - 4) * 1024 * 50304 * 12 / 2**30, rel=0.1)
    assert "model.activation_checkpointing=true, or auto" in said
    saved = [float(gib) for _, gib in found]
    assert len(saved) == 3 and saved == sorted(saved, reverse=True)

    graphed = changed(settings, {"compile": "cudagraphs"})  # refuses most of that
    said = str(out_of_memory(MemoryError(), Prepared(graphed, {}, *place, None, None, *data)))
    assert "model.activation_checkpointing=ffn (about" in said
    assert "=true" not in said and "accumulate" not in said

    graphed = changed(graphed, {"model.activation_checkpointing": "ffn"})
    offered = [text for text, _ in _changed(Prepared(graphed, {}, *place, None, None, *data))]
    assert offered[0] == "model.activation_budget=0.5" and "checkpointing" not in " ".join(offered)

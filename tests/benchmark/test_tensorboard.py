"""TensorBoard has a benchmark in one group, with few curves, and narrow tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xftrain.benchmark.benchmark import Context
from xftrain.benchmark.rows import read_rows
from xftrain.benchmark.tensorboard import curves, log_benchmark, log_verdict
from xftrain.config import registry

H100 = Path(__file__).parents[2] / "docs" / "benchmarks" / "2026-11-24-h100"
BENCHMARKS = ("doctor", "parity", "packed", "grouped", "alibi", "attention_sweep", "train_sweep")


def _row(length: int | None, ms: float | None, **more: Any) -> dict[str, Any]:
    return {"backend": "sdpa", "bias": "full", "M": length, "ms": ms, "tflops": ms} | more


def test_only_curves_are_scalars_and_only_times_and_memory() -> None:
    rows = [_row(512, 1.0), _row(1024, 2.0), _row(2048, None), _row(512, 3.0, backend="naive")]
    rows += [_row(512, 4.0, backend="flex", longest_limit=9), {"kernel": "fa2", "error": 0.1}]
    assert curves(rows) == {("ms", "full sdpa"): [(512, 1.0), (1024, 2.0)]}


def test_a_whole_benchmark_is_one_group_of_few_tags(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    context = Context(
        run_dir=tmp_path, device=torch.device("cpu"), dtype="float32", options={}, loggers=[logger]
    )
    rows = read_rows(H100)
    for name in BENCHMARKS:
        own = [row for row in rows if row["sweep"] == name]
        log_benchmark(context, registry.load_class("callbacks", name), own, 700.0, {})  # type: ignore[arg-type]
    log_verdict(context, rows)
    logger.experiment.close()

    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert (
        len(tags["scalars"]) <= 50
        and "benchmark/attention_sweep/ms/full mha sdpa" in (tags["scalars"])
    )
    everything = [*tags["scalars"], *tags["tensors"]]
    assert {tag.partition("/")[0] for tag in everything} == {"benchmark"}
    assert min(tags["tensors"]).startswith("benchmark/Which attention to use")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_the_console_and_tensorboard_show_is_narrow(name: str) -> None:
    benchmark: Any = registry.load_class("callbacks", name)
    rows = [row for row in read_rows(H100) if row["sweep"] == name]
    tables = [line for line in benchmark.summary(rows, 700.0).splitlines() if line.startswith("|")]
    assert tables and max(line.count("|") - 1 for line in tables) <= 9
    assert max(map(len, tables)) <= 155  # the tutorial's own figures beside ours, on an H100

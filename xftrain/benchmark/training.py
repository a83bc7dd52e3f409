"""Measures training: a few steps of a run with the given configuration."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xftrain.benchmark.cells import Cell
from xftrain.benchmark.measure import settle, spread
from xftrain.benchmark.worker import Reporter
from xftrain.commands import train
from xftrain.config.compose import validate_as
from xftrain.config.own_code import own_code
from xftrain.config.run_config import RunConfig
from xftrain.train import hardware

_INTERVALS = 3  # timed intervals of a round, after one for warm-up
_DECISIVE = (  # root keys that affect a training step
    *("model", "data", "loss", "optim", "schedule", "trainer"),
    *("seq", "batch_tokens", "seed", "compile", "matmul", "deterministic"),
)
_ROUNDS = 2  # rounds over all cells, so that clock drift affects all alike


@dataclass(frozen=True)
class TrainCell(Cell):
    """A short training run.

    Attributes:
        options: the plain values of the run's whole configuration, as in checkpoints and with
            secrets hidden, which are the cell's key on disk; the process that trains it checks
            them into a RunConfig.
        interval_steps: optimizer steps of one timed interval.
    """

    options: Mapping[str, Any]
    interval_steps: int

    @property
    def identity(self) -> Any:
        """Everything that determines the results of the cell, except the machine."""
        options = {key: self.options[key] for key in _DECISIVE}
        code = own_code(options)
        return (options, self.interval_steps, *([code] if code else []))


def measure_training(cells: Sequence[TrainCell], reporter: Reporter) -> None:
    """Measures training runs and reports rows with `tokens_per_s`, `step_ms`, `mfu` and memory."""
    found: dict[int, list[dict[str, Any]]] = {index: [] for index in range(len(cells))}
    for _ in range(_ROUNDS):
        for index in list(found):
            record = reporter.attempt(index, _run, cells[index])
            if record is None:
                del found[index]
            else:
                found[index].append(record)
    for index, records in found.items():
        reporter.row(index, "ok", **_joined(records))


def _run(cell: TrainCell) -> dict[str, Any]:
    """Runs one round of a cell."""
    changed = {
        "max_steps": (_INTERVALS + 1) * cell.interval_steps,
        "init_from": None,
        "ckpt": None,
        "callbacks": {"metrics": {"name": "metrics"}},
        "logger": {"csv": {"name": "csv"}},
    }
    composed = OmegaConf.create({**cell.options, **changed})
    composed.trainer.log_every_n_steps = cell.interval_steps
    composed.trainer.val_check_interval = 10**9
    cfg = validate_as(RunConfig, composed)
    device, _ = hardware.resolve(cfg.trainer.accelerator, cfg.trainer.precision)
    settle(device)
    with tempfile.TemporaryDirectory() as folder:
        result = train.run(composed, Path(folder), cfg)
        with (Path(folder) / "metrics.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))

    def series(name: str) -> list[float]:
        return [float(line[name]) for line in lines if line.get(name)][1:]  # without the warm-up

    return {
        "kernel": result["kernel"],
        "peak_mib": result["peak_memory_mib"],
        "step_ms": series("speed/step_ms"),
        "tokens_per_s": series("speed/tokens_per_s"),
        "tflops": series("speed/tflops"),
        "mfu": series("speed/mfu"),
    }


def _joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the rounds of a cell into one row."""

    def all_of(name: str) -> list[float]:
        return [value for record in records for value in record[name]]

    row: dict[str, Any] = {"kernel": records[0]["kernel"]}
    for name in ("step_ms", "tokens_per_s"):
        row |= spread(name, all_of(name))
    row["repetitions"] = len(all_of("step_ms"))
    for name in ("tflops", "mfu"):
        values = all_of(name)
        row[name] = spread(name, values)[name] if values else None
    row["peak_mib"] = max(record["peak_mib"] for record in records)
    return row

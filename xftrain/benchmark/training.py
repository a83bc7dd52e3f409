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
from xftrain.config.own_code import own_code
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
        options: the run's whole configuration.
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
    trainer = cell.options["trainer"]
    device, _ = hardware.resolve(trainer["accelerator"], trainer["precision"])
    settle(device)
    options = {
        **cell.options,
        "max_steps": (_INTERVALS + 1) * cell.interval_steps,
        "ckpt": None,
        "callbacks": {"metrics": {"name": "metrics"}},
        "logger": {"csv": {"name": "csv"}},
        "trainer": {
            **trainer,
            "log_every_n_steps": cell.interval_steps,
            "val_check_interval": 10**9,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        result = train.run(OmegaConf.create(options), Path(folder))
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

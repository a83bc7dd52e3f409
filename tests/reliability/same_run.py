"""Whether two folders hold the same run: weights, checkpoint, rows, points and result."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xftrain.checkpoint.file import read_checkpoint

# What a step took differs from run to run.
_MEASURED = ("speed/", "memory/")
_CHECKPOINT = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "callbacks")


def weights_differ(one: Path, two: Path) -> list[str]:
    """Tensors and states of the last checkpoint and of the exported weights that are not equal."""
    found = []
    name = "checkpoints/weights.safetensors"
    if missing := [folder for folder in (one, two) if not (folder / name).is_file()]:
        return [f"{missing[0].name}/{name} is missing"]
    found += _unequal("weights", load_file(one / name), load_file(two / name))
    last = "checkpoints/last.ckpt"
    states = [read_checkpoint(folder / last) for folder in (one, two)]
    for state in states:  # its identity, and sizes of files
        state["callbacks"].pop("RunStart", None)
    for key in _CHECKPOINT:
        found += _unequal(key, states[0].get(key), states[1].get(key))
    return found


def rows_differ(one: Path, two: Path) -> list[str]:
    """Metrics of `metrics.csv`, TensorBoard and `result.json` that are not equal, or not once."""
    return [
        *_points_differ("metrics.csv", _csv_points(one), _csv_points(two)),
        *_points_differ("TensorBoard", _board_points(one), _board_points(two)),
        *_results_differ(one, two),
    ]


def _unequal(place: str, one: Any, two: Any) -> Iterator[str]:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if not torch.equal(one, two):
            yield place
    elif isinstance(one, Mapping) and isinstance(two, Mapping) and one.keys() == two.keys():
        for key, value in one.items():
            yield from _unequal(f"{place}.{key}", value, two[key])
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        for number, (value, other) in enumerate(zip(one, two, strict=True)):
            yield from _unequal(f"{place}.{number}", value, other)
    elif one != two:
        yield place


Point = tuple[str, int]  # of a metric and a step
Points = list[tuple[Point, float]]


def _csv_points(folder: Path) -> Points:
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            ((name, int(row["step"])), float(value))
            for row in csv.DictReader(file)
            for name, value in row.items()
            if name != "step" and value
        ]


def _board_points(folder: Path) -> Points:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return [
        ((tag, point.step), point.value)
        for tag in board.Tags()["scalars"]
        for point in board.Scalars(tag)
    ]


def _points_differ(place: str, one: Points, two: Points) -> Iterator[str]:
    """Sentences on the points of `two`, `one` being what is right."""
    counts = Counter(point for point, _ in two)
    wanted, found = dict(one), dict(two)
    missing = sorted(wanted.keys() - found.keys())
    twice = sorted(point for point, count in counts.items() if count > 1)
    extra = sorted(found.keys() - wanted.keys())
    other = sorted(
        point
        for point in wanted.keys() & found.keys()
        if not point[0].startswith(_MEASURED) and wanted[point] != found[point]
    )
    for what, points in {
        "missing": missing,
        "more than once": twice,
        "not of the run": extra,
        "with other values": other,
    }.items():
        if points:
            metric, step = points[0]
            yield f"{place}: {len(points)} points {what}, the first {metric} of step {step}"


def _results_differ(one: Path, two: Path) -> Iterator[str]:
    paths = [folder / "result.json" for folder in (one, two)]
    if not all(path.is_file() for path in paths):
        yield "result.json: missing"
        return
    wanted, found = (json.loads(path.read_text()) for path in paths)
    for key in ("status", "steps"):
        if wanted[key] != found[key]:
            yield f"result.json: {key} is {found[key]}, not {wanted[key]}"
    names = wanted["metrics"].keys() | found["metrics"].keys()
    for name in sorted(names):
        values = [result["metrics"].get(name) for result in (wanted, found)]
        is_measured = name.startswith(_MEASURED) and None not in values
        if not is_measured and values[0] != values[1]:
            yield f"result.json: {name} is {values[1]}, not {values[0]}"

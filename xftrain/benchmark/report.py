"""`report.md` and `results.csv` of a run folder, written anew from all rows after each sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xftrain import registry
from xftrain.benchmark import environment, tables
from xftrain.benchmark.cells import Row
from xftrain.benchmark.matmul import SWEEP as PEAK
from xftrain.benchmark.matmul import peak_tflops
from xftrain.benchmark.rows import write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xftrain.benchmark.sweep import Sweep

_PLOTS = "plots"
_ENVIRONMENT = "environment.json"


def write(
    run_dir: Path,
    rows: Sequence[Row],
    device: torch.device,
    sweep: Sweep,
    figures: Mapping[str, Figure],
) -> None:
    """Saves a sweep's plots, and the report on all sweeps of the folder."""
    path = run_dir / _ENVIRONMENT
    if not path.is_file():
        found = environment.describe(device) | {"command": environment.command()}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if figures:
        (run_dir / _PLOTS).mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(run_dir / _PLOTS / f"{sweep.name}-{name}.png")
    write_csv(rows, run_dir / "results.csv")
    (run_dir / "report.md").write_text(render(run_dir, rows), encoding="utf-8")


def render(run_dir: Path, rows: Sequence[Row]) -> str:
    """The report as Markdown."""
    found: dict[str, str] = json.loads((run_dir / _ENVIRONMENT).read_text(encoding="utf-8"))
    parts = [
        f"# Benchmark: {found['device']}",
        f"`{found.pop('command')}`",
        tables.table(["what", "measured on"], [[k, v] for k, v in found.items()]),
    ]
    peaks = [row for row in rows if row["sweep"] == PEAK and row["status"] == "ok"]
    parts += [
        f"A {row['size']} x {row['size']} matrix product in {row['dtype']} ran at "
        f"{tables.figure(row['tflops'])} TF/s; shares of the peak are of this."
        for row in peaks
    ]
    parts.append(tables.LEGEND)
    for name in dict.fromkeys(row["sweep"] for row in rows if row["sweep"] != PEAK):
        kind = registry.load("callbacks", name)
        own = [row for row in rows if row["sweep"] == name]
        peak = peak_tflops(rows, own[0].get("dtype"))
        parts += [f"## {kind.title}", kind.section(own, peak)]  # type: ignore[attr-defined]
        plots = sorted((run_dir / _PLOTS).glob(f"{name}-*.png"))
        parts += [f"![{plot.stem}]({_PLOTS}/{plot.name})" for plot in plots]
    return "\n\n".join(part for part in parts if part) + "\n"

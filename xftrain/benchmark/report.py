"""Writes `report.md` and `results.csv` of a run folder from all rows, after each benchmark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xftrain.benchmark import environment, tables
from xftrain.benchmark.cells import Row
from xftrain.benchmark.matmul import BENCHMARK as PEAK
from xftrain.benchmark.matmul import peak_tflops
from xftrain.benchmark.rows import as_markdown, write_csv
from xftrain.benchmark.verdict import BENCHMARKS, TITLE, verdict
from xftrain.config import registry
from xftrain.utils.files import replace_bytes, replace_text
from xftrain.utils.markdown import escaped
from xftrain.utils.printable import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLOTS = "plots"
# A plot's file name without Markdown markup; other files in the folder are not plots of xftrain.
_is_harmless = re.compile(r"[\w.+=-]+", re.ASCII).fullmatch
Shown = Mapping[str, tuple[Any, Sequence[Row]]]  # by name, the class of a benchmark and its rows


def write(
    run_dir: Path, rows: Sequence[Row], shown: Shown, name: str, figures: Mapping[str, Figure]
) -> None:
    """Saves a benchmark's plots, and the report about all benchmarks of the folder."""
    if figures:
        (run_dir / _PLOTS).mkdir(exist_ok=True)
        for earlier in (run_dir / _PLOTS).glob(f"{name}-*.png"):
            if earlier.stem.removeprefix(f"{name}-") not in figures:
                earlier.unlink()  # an earlier plot that is no longer drawn
    for title, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        replace_bytes(run_dir / _PLOTS / f"{name}-{title}.png", png.getvalue())
    write_csv(rows, run_dir / "results.csv")
    replace_text(run_dir / "report.md", render(run_dir, rows, shown))


def render(run_dir: Path, rows: Sequence[Row], shown: Shown | None = None) -> str:
    """Renders the report as Markdown.

    Args:
        run_dir: the run folder, with `environment.json` and the plots.
        rows: the rows of all benchmarks.
        shown: the rows to show for some benchmarks, without the folder's rows of other settings.
    """
    found: dict[str, str] = environment.read(run_dir)
    command = one_line(found.pop("command")).replace("`", "'")
    found = {escaped(one_line(name)): escaped(one_line(text)) for name, text in found.items()}
    parts = [f"# Benchmark: {found['device']}", f"`{command}`", found.pop("note", "")]
    if text := verdict([as_markdown(row) for row in rows_for_verdict(rows, shown or {})]):
        parts += [f"## {TITLE}", text, "## What it was measured on"]
    parts.append(tables.table(["what", "measured on"], [[k, v] for k, v in found.items()]))
    saved, rows = rows, [as_markdown(row) for row in rows]
    peaks = [row for row in rows if row["sweep"] == PEAK and row["status"] == "ok"]
    parts += [
        f"A {row['size']} x {row['size']} matmul in {row['dtype']} ran at "
        f"{tables.figure(row['tflops'])} TF/s; shares of the peak are of this."
        for row in peaks
    ]
    parts.append(tables.LEGEND)
    for name in dict.fromkeys(row["sweep"] for row in rows if row["sweep"] != PEAK):
        kind, own = (shown or {}).get(name, (None, []))
        if kind is None and name in registry.option_names("callbacks"):
            kind, own = (
                registry.load_class("callbacks", name),
                [r for r in saved if r["sweep"] == name],
            )
        if kind is None:
            continue  # a user's own class that is not part of this run: only in rows.jsonl
        peak = peak_tflops(rows, own[0].get("dtype") if own else None)
        parts += [f"## {kind.title}", kind.section([as_markdown(row) for row in own], peak)]
        found_plots = (run_dir / _PLOTS).glob(f"{name}-*.png")
        plots = sorted(plot for plot in found_plots if _is_harmless(plot.name))
        parts += [f"![{plot.stem}]({_PLOTS}/{plot.name})" for plot in plots]
    return "\n\n".join(part for part in parts if part) + "\n"


def rows_for_verdict(rows: Sequence[Row], shown: Shown) -> list[Row]:
    """The rows of this run's benchmarks, and the folder's rows of all other benchmarks."""
    found: list[Row] = []
    for name in BENCHMARKS:
        own = shown[name][1] if name in shown else [r for r in rows if r["sweep"] == name]
        found += own
    return found

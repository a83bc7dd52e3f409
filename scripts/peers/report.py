"""The results of a comparison of peers: a table, a bar chart and a CSV file."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peers.setup import split_name
from xftrain.benchmark.tables import STATUS, figure, show
from xftrain.utils import markdown
from xftrain.utils.files import replace_text
from xftrain.utils.plot_style import COLORS, new_figure, style_axis

Row = dict[str, Any]

STATUS_LABELS = {**STATUS, "missing": "not installed"}
COLUMNS = ["peer", "repeat", "status", "reason", "model", "parameters", "ms_per_step"]
COLUMNS += ["tokens_per_s", "ratio", "mfu", "peak_gib", "loss", "kernel", "warmup_s"]


def median_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Returns one row per peer: that of median speed, or its last one if none ran, with ratios.

    Args:
        rows: all rows, in the order in which they were measured.
        baseline: the peer with ratio 1; if it did not run, no row has a ratio.
    """
    found = []
    for peer in dict.fromkeys(row["peer"] for row in rows):
        own = [row for row in rows if row["peer"] == peer]
        ran = [row for row in own if row["status"] == "ok"]
        if not ran:
            found.append(own[-1])
            continue
        middle = statistics.median_low([row["tokens_per_s"] for row in ran])
        found.append(next(row for row in ran if row["tokens_per_s"] == middle))
    return with_ratios(found, found, baseline)


def with_ratios(rows: Sequence[Row], medians: Sequence[Row], baseline: str) -> list[Row]:
    """Adds to each row its tokens/s divided by those of the baseline's row in `medians`."""
    speeds = [row.get("tokens_per_s") for row in medians if row["peer"] == baseline]
    one = next(iter(speeds), None)
    return [
        {**row, "ratio": row["tokens_per_s"] / one if one and row.get("tokens_per_s") else None}
        for row in rows
    ]


def table(rows: Sequence[Row], baseline: str) -> str:
    """Returns the table in Markdown, followed by the reasons of rows without figures."""
    header = ["peer", "ms/step", "tokens/s", f"of {baseline}", "MFU", "peak GiB", "loss"]
    header += ["parameters", "model", "attention"]
    lines, reasons = [], []
    for row in rows:
        if row["status"] != "ok":
            word = STATUS_LABELS[row["status"]]
            lines.append([row["peer"], word, *["-"] * (len(header) - 2)])
            reasons.append(f"- `{row['peer']}`: {word}: {show(row['reason'])}")
            continue
        ratio, mfu = row["ratio"], row["mfu"]
        lines.append(
            [
                row["peer"],
                f"{row['ms_per_step']:.2f}",
                f"{row['tokens_per_s']:,.0f}",
                "-" if ratio is None else f"{ratio:.3f}",
                "-" if mfu is None else f"{mfu:.1%}",
                f"{row['peak_gib']:.2f}",
                f"{row['loss']:.4f}",
                f"{row['parameters']:,}",
                row["model"],
                row["kernel"] or "-",
            ]
        )
    return "\n\n".join(
        filter(
            None,
            [markdown.table(header, lines, figures=[*STATUS_LABELS.values()]), "\n".join(reasons)],
        )
    )


def bar_chart(rows: Sequence[Row]) -> Figure:
    """Draws tokens/s and peak memory; a peer that did not run has its status instead of a bar."""
    chart = new_figure(11, 1.6 + 0.38 * len(rows))
    panels = (("tokens_per_s", "tokens/s", COLORS[0]), ("peak_gib", "peak memory, GiB", COLORS[1]))
    for axis, (field, label, color) in zip(chart.subplots(1, 2, sharey=True), panels, strict=True):
        values = [row.get(field) or 0.0 for row in rows]
        axis.barh(range(len(rows)), values, color=color)
        axis.set_yticks(range(len(rows)), [label_of(row["peer"]) for row in rows], fontsize=8)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            text = figure(value) if row["status"] == "ok" else STATUS_LABELS[row["status"]]
            axis.text(value, place, f" {text}", va="center", fontsize=8)
        axis.set_xlim(0, 1.2 * max([*values, 1e-9]))
        axis.locator_params(axis="x", nbins=4)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        style_axis(axis, label)
        axis.grid(visible=False, axis="y")
    axis.invert_yaxis()  # the first peer on top, in both panels, which share the axis
    return chart


def label_of(peer: str) -> str:
    """Returns the peer's name, with each of its overrides on a separate line."""
    kind, backend, overrides = split_name(peer)
    return "\n".join([f"{kind}:{backend}" if backend else kind, *overrides])


def write(out: Path, rows: Sequence[Row], baseline: str, info: Mapping[str, str]) -> str:
    """Writes peers.csv, peers.md and peers.png; returns the text of peers.md below its title.

    Args:
        out: the folder.
        rows: all rows measured so far.
        baseline: the peer with ratio 1.
        info: the content of environment.json.
    """
    medians = median_rows(rows, baseline)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(with_ratios(rows, medians, baseline))
    replace_text(out / "peers.csv", file.getvalue())
    text = f"{info['setting']}\n\n{table(medians, baseline)}\n"
    replace_text(out / "peers.md", f"# {info['device']}, torch {info['torch']}\n\n{text}")
    FigureCanvasAgg(bar_chart(medians)).print_png(out / "peers.png")
    return text

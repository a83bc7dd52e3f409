"""What a comparison of peers leaves: a table, a picture and a file of rows."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peers.setup import in_parts
from xftrain.benchmark.tables import STATUS, figure, show
from xftrain.utils import markdown
from xftrain.utils.files import replace_text
from xftrain.utils.plot_style import COLORS, new_figure, style_axis

Row = dict[str, Any]

WORDS = {**STATUS, "missing": "not installed"}
COLUMNS = ["peer", "repeat", "status", "reason", "model", "parameters", "ms_per_step"]
COLUMNS += ["tokens_per_s", "ratio", "mfu", "peak_gib", "loss", "kernel", "warmup_s"]


def joined(rows: Sequence[Row], baseline: str) -> list[Row]:
    """One row a peer: of those that ran, the one of median speed, with its ratio to the baseline.

    Args:
        rows: in the order in which they were measured.
        baseline: the peer with ratio 1; where it has no speed, no row has a ratio.
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


def with_ratios(rows: Sequence[Row], typical: Sequence[Row], baseline: str) -> list[Row]:
    """The rows with tokens/s divided by those of the baseline among the typical ones."""
    speeds = [row.get("tokens_per_s") for row in typical if row["peer"] == baseline]
    one = next(iter(speeds), None)
    return [
        {**row, "ratio": row["tokens_per_s"] / one if one and row.get("tokens_per_s") else None}
        for row in rows
    ]


def table(rows: Sequence[Row], baseline: str) -> str:
    """The comparison in Markdown, and below it why rows have no figures."""
    header = ["peer", "ms/step", "tokens/s", f"of {baseline}", "MFU", "peak GiB", "loss"]
    header += ["parameters", "model", "attention"]
    lines, reasons = [], []
    for row in rows:
        if row["status"] != "ok":
            word = WORDS[row["status"]]
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
        filter(None, [markdown.table(header, lines, figures=[*WORDS.values()]), "\n".join(reasons)])
    )


def picture(rows: Sequence[Row]) -> Figure:
    """Tokens/s and peak memory as bars; a peer without figures has a word in their place."""
    made = new_figure(11, 1.6 + 0.38 * len(rows))
    panels = (("tokens_per_s", "tokens/s", COLORS[0]), ("peak_gib", "peak memory, GiB", COLORS[1]))
    for axis, (field, label, color) in zip(made.subplots(1, 2, sharey=True), panels, strict=True):
        values = [row.get(field) or 0.0 for row in rows]
        axis.barh(range(len(rows)), values, color=color)
        axis.set_yticks(range(len(rows)), [in_lines(row["peer"]) for row in rows], fontsize=8)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            text = figure(value) if row["status"] == "ok" else WORDS[row["status"]]
            axis.text(value, place, f" {text}", va="center", fontsize=8)
        axis.set_xlim(0, 1.2 * max([*values, 1e-9]))
        axis.locator_params(axis="x", nbins=4)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        style_axis(axis, label)
        axis.grid(visible=False, axis="y")
    axis.invert_yaxis()  # shared: the first peer on top
    return made


def in_lines(peer: str) -> str:
    """Its name, and each override of it on a line of its own."""
    kind, backend, overrides = in_parts(peer)
    return "\n".join([f"{kind}:{backend}" if backend else kind, *overrides])


def write(out: Path, rows: Sequence[Row], baseline: str, found: Mapping[str, str]) -> str:
    """All files but the environment; what peers.md says."""
    typical = joined(rows, baseline)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(with_ratios(rows, typical, baseline))
    replace_text(out / "peers.csv", file.getvalue())
    text = f"{found['setting']}\n\n{table(typical, baseline)}\n"
    replace_text(out / "peers.md", f"# {found['device']}, torch {found['torch']}\n\n{text}")
    FigureCanvasAgg(picture(typical)).print_png(out / "peers.png")
    return text

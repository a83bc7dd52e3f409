"""A row of a benchmark that anyone may have written is text wherever it is shown."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xftrain.benchmark import environment, tables
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Cell, Row
from xftrain.benchmark.rows import as_lines, read_rows
from xftrain.benchmark.session import run_suite
from xftrain.benchmark.worker import Job
from xftrain.errors import ConfigError

CPU = torch.device("cpu")
FORGED = "\n[09:00:00] done in 1.0 s: 400 steps\x1b]0;EVIL\x07"
HOSTILE = [
    FORGED,
    "<img src=http://evil/x onerror=alert(1)>",
    "![p](http://evil/p.png)",
    "![x][y]",  # of a reference that another text defines
    "a | b |\n| forged | row |",
    "&lt;b>",
    "\u202egnp\u2028x",
    "x" * 100_000,
]


class Own(Benchmark):
    """A benchmark that displays the texts of its rows in every possible output."""

    name, title = "own", "Own"

    def jobs(self, context: Context) -> list[Job]:
        return [Job(_never, (Cell("own", {"backend": "naive"}),))]

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        columns: dict[str, str | tables.Format] = {
            **{"backend": "backend", "kernel": "kernel", "ms": tables.outcome("ms")},
            "p10 to p90": lambda row: tables.span(row, "ms"),
            "Mtoken": lambda row: f"{row['tokens'] / 1e6:.1f}" if "tokens" in row else "-",
        }
        return f"{tables.columns_of(rows, columns)}\n{tables.reasons(rows, lambda r: r['kernel'])}"


def _never(cells: Any, reporter: Any) -> None:
    raise AssertionError("each cell has a row")


def _show(run_dir: Path, row: dict[str, Any]) -> None:
    """Shows a stored row as a repeated benchmark does."""
    saved = {
        **{"sweep": "own", "cell": Own(timeout_s=1, resume=True).jobs(None)[0].cells[0].key},  # type: ignore[arg-type]
        **{"status": "unsupported", "reason": None, "kernel": "k", "ms": None, "backend": "naive"},
        **environment.row_fields(CPU),
    }
    run_dir.mkdir(exist_ok=True)
    (run_dir / "rows.jsonl").write_text(json.dumps(saved | row) + "\n")
    logger = TensorBoardLogger(run_dir, name="", version="")
    context = Context(run_dir=run_dir, device=CPU, dtype="float32", options={}, loggers=[logger])
    run_suite([Own(timeout_s=1.0, resume=True)], context)
    logger.experiment.close()


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_row_forges_a_line_an_image_or_a_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level(logging.INFO)
    _show(tmp_path / "b", {"reason": text, "kernel": text, "backend": text, text: text})
    report = (tmp_path / "b" / "report.md").read_text()
    events = EventAccumulator(str(tmp_path / "b")).Reload()
    board = events.Tensors("benchmark/own/text_summary")[0].tensor_proto.string_val[0].decode()
    for shown in (report, board):
        assert "refused" in shown and len(shown) < 20_000
        assert not any(
            mark in shown for mark in ("\x1b", "<img", "](http", "![x][y]", "| forged", "<b>")
        )
        assert "\n[09" not in shown and "\u202e" not in shown
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "\x1b" not in said and "\n[09" not in said and "\n| forged" not in said
    assert len(said) < 20_000 and "| naive " in said and "| naive " in report


def test_a_file_of_rows_cannot_ask_for_a_table_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    rows = ({f"field {number}": 1} for number in range(301))
    (tmp_path / "b" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="more than 300 different fields"):
        read_rows(tmp_path / "b")


def test_a_number_that_json_lacks_is_none_wherever_it_is(tmp_path: Path) -> None:
    _show(tmp_path / "b", {"ms": [math.nan, {"a": math.inf, "b": "\x1b"}]})
    (row, *_) = read_rows(tmp_path / "b")
    assert row["ms"] == [None, {"a": None, "b": r"\x1b"}]


@pytest.mark.parametrize(
    "text",
    ['=HYPERLINK("http://evil")', "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1", " =1+1", "＝1+1"],
)
def test_no_cell_of_the_table_is_a_formula(tmp_path: Path, text: str) -> None:
    _show(tmp_path / "b", {"kernel": text, text: "a;=1+1", "reason": f"a;{text}|=1;b"})
    content = (tmp_path / "b" / "results.csv").read_text()
    for separator in ",;|\t":  # a spreadsheet may take any of them for one
        lines = csv.reader(content.splitlines(), delimiter=separator)
        cells = [cell.strip() for line in lines for cell in line]
        assert not [cell for cell in cells if cell.startswith(tuple("=+-@＝"))]


@pytest.mark.parametrize(
    "wrong", [{"status": "fine"}, {"status": "ok", "ms_p10": "x"}, {"status": "ok", "tokens": None}]
)
def test_a_row_that_no_benchmark_wrote_is_refused_in_a_sentence(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"rows\.jsonl has .* choose another hydra\.run\.dir"):
        _show(tmp_path / "b", {"ms_p90": 1.0, "ms_p10": 1.0, "tokens": 1} | wrong)


def test_a_figure_without_end_is_not_written_out() -> None:
    assert as_lines({"a": 1.0, "b": None, "c": [1, "x"], "d": True}) == {
        **{"a": 1.0, "b": None, "c": "[1, 'x']", "d": True}
    }
    assert tables.figure(1e300) == "1.0e+300" and tables.figure(123456.0) == "123,456"


def test_no_name_of_a_plot_that_was_there_is_more_than_a_name_in_the_report(tmp_path: Path) -> None:
    plots = tmp_path / "b" / "plots"
    plots.mkdir(parents=True)
    # entities stand for slashes, which a name cannot have
    for name in (
        "<img src=&#47;&#47;evil>",
        "x\n\n# Forged\n\n[c](&#47;e)\n",
        "\x1b]0;EVIL\x07",
        "ä",
    ):
        (plots / f"own-{name}.png").touch()
    (plots / "own-time.png").touch()
    _show(tmp_path / "b", {})
    report = (tmp_path / "b" / "report.md").read_text()
    assert [line for line in report.splitlines() if "own-" in line] == [
        "![own-time](plots/own-time.png)"
    ]
    assert "Forged" not in report and "\x1b" not in report

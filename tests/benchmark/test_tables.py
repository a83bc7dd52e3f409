"""The tables of the benchmark, and the digits in them."""

from __future__ import annotations

import json
from pathlib import Path

from xftrain.benchmark import tables
from xftrain.benchmark.callbacks.attention_sweep import tutorial_table
from xftrain.benchmark.rows import RowStore

HERE = {"device": "cpu", "torch": "2.13"}


def test_a_table_is_markdown_that_can_be_read_as_it_is() -> None:
    made = tables.table(["name", "n"], [["a", "1"], ["long name", "1,234"], ["c", "-"]])
    assert made.splitlines() == [
        "| name      |     n |",
        "| --------- | ----: |",
        "| a         |     1 |",
        "| long name | 1,234 |",
        "| c         |     - |",
    ]


def test_figures_have_three_digits() -> None:
    shown = [tables.figure(x) for x in (0.0, 1234.5, 123.4, 12.345, 1.2345, 0.1234, 0.00123)]
    assert shown == ["0", "1,234", "123", "12.3", "1.23", "0.123", "1.2e-03"]


def test_reasons_are_said_once_with_all_that_share_them() -> None:
    rows = [
        {"status": "unsupported", "reason": "no GPU", "backend": name} for name in ("a", "b", "a")
    ]
    said = tables.reasons([*rows, {"status": "ok", "backend": "c"}], lambda row: row["backend"])
    assert said == "- refused (3): a, b: no GPU"


def test_the_tutorials_table_has_its_form() -> None:
    def row(backend: str, length: int, **fields: object) -> dict[str, object]:
        sizes = {"B": 2, "H": 8, "K": 64, "dtype": "float16", "device": "cpu"}
        return {**sizes, "backend": backend, "bias": "full", "M": length, "status": "ok", **fields}

    rows = [
        row("naive", 512, ms=1.0, loop_ms=1.25, peak_mib=100.0, loop_peak_mib=200.0),
        row("xformers", 512, ms=0.5, loop_ms=None, peak_mib=50.0),
        row("naive", 1024, status="oom", reason="too much"),
        row("xformers", 1024, ms=0.75, loop_ms=0.8, peak_mib=None),
    ]
    made = tutorial_table(rows).splitlines()
    assert made[2:] == [
        "| seqlen |      naive MB | xformers MB |      naive ms | xf ms |",
        "| -----: | ------------: | ----------: | ------------: | ----: |",
        "|    512 |           210 |          52 |          1.25 |  0.50 |",
        "|   1024 | out of memory |           - | out of memory |  0.80 |",
    ]
    assert tutorial_table(rows[:1]) == ""  # half a comparison is none
    beside = tutorial_table([{**row, "device": "NVIDIA H100 80GB HBM3"} for row in rows])
    assert " 148 |" in beside and "tutorial's xf ms" in beside  # what its own script printed


def test_rows_are_plain_json(tmp_path: Path) -> None:
    store = RowStore(tmp_path, HERE)
    store.add({"sweep": "a", "cell": "é", "status": "ok", "seqlens": [1, 2]})
    assert json.loads((tmp_path / "rows.jsonl").read_text())["seqlens"] == [1, 2]

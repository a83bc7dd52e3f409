"""The table of a sweep has the best job first, and over seeds the best setting."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from xftrain.multirun.order import best_row, minimized, ordered, settings
from xftrain.multirun.table import clear_jobs, register_job, table, write_summary


def _row(job: int, loss: float | None, status: str = "completed", **changed: str) -> dict:
    row = {"job": job, "status": status, **changed, "val/loss": loss, "val/accuracy": None}
    return row | {"tokens_per_s": 1e4, "run_dir": str(job), "error": ""}


def _jobs(rows: list[dict]) -> list[int]:
    return [row["job"] for row in ordered(rows)]


def _best(rows: list[dict]) -> list[int]:
    return [row["job"] for row in ordered(rows) if row["best"]]


def test_the_lowest_loss_is_first_and_a_job_without_a_result_last() -> None:
    rows = [_row(0, 3.0, lr="1"), _row(1, 0.1, "failed", lr="2"), _row(2, None, lr="3")]
    rows += [_row(3, 1.0, lr="4"), _row(4, 2.0, lr="5")]
    assert _jobs(rows) == [3, 4, 0, 1, 2] and _best(rows) == [3]
    assert "| best | 3 " in table(ordered(rows)).replace("  ", " ")


def test_bits_per_byte_are_compared_where_all_have_them() -> None:
    rows = [_row(0, 1.0, data="a") | {"val/bits_per_byte": 2.0}]
    rows += [_row(1, 2.0, data="b") | {"val/bits_per_byte": 1.0}]
    assert minimized(rows) == "val/bits_per_byte" and _best(rows) == [1]
    rows += [_row(2, 9.0, data="c") | {"val/bits_per_byte": None}]
    assert minimized(rows) == "val/loss" and _best(rows) == [0]


def test_jobs_that_differ_by_seed_count_by_their_mean() -> None:
    losses = {("1e-3", "0"): 2.0, ("1e-3", "1"): 2.2, ("1e-2", "0"): 1.9, ("1e-2", "1"): 2.9}
    rows = [
        _row(job, loss, lr=lr, seed=seed) for job, ((lr, seed), loss) in enumerate(losses.items())
    ]
    assert _best(rows) == [0, 1] and _jobs(rows) == [0, 1, 2, 3]  # job 2 was lucky
    said = table(ordered(rows))
    assert "| best | 1e-3 | 2.1 ± 0.14           | 2 of 2 |" in said
    assert "- the best is ahead of the next by 0.3, within the spread" in said
    failed = [rows[0], rows[1] | {"status": "failed"}, *rows[2:]]
    assert "| best | 1e-3 | 2 " in table(ordered(failed)) and "1 of 2" in table(ordered(failed))


def test_without_a_comparison_nothing_is_the_best() -> None:
    assert _best([_row(0, 1.0, lr="1")]) == [] == _best([_row(0, 1.0, "failed", lr="1")])
    seeds = [_row(n, 1.0 + n, seed=str(n)) for n in range(3)]
    assert _best(seeds) == [] and "| 2 ± 1 " in table(ordered(seeds))
    assert best_row([_row(0, 1.0)], "val/loss") is None and ordered([]) == []


def test_files_have_short_paths_and_what_is_known_alone(tmp_path: Path) -> None:
    clear_jobs(tmp_path)
    for number, loss in enumerate((2.0, 1.0)):
        run_dir = tmp_path / f"{number}_lr={number}"
        run_dir.mkdir()
        metrics = {"val/loss": loss, "val/bits_per_byte": loss}
        drawn = f"optim.lr=0.00{number}0538190856564692"
        result = {"status": "completed", "overrides": [drawn], "num_parameters": 1000 + number}
        (run_dir / "result.json").write_text(json.dumps(result | {"metrics": metrics}))
        register_job(tmp_path, number, run_dir)
    write_summary(tmp_path)
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run_dir"], row["parameters"]) for row in rows] == [
        ("1_lr=1", "1001"),
        ("0_lr=0", "1000"),
    ]
    assert rows[0]["optim.lr"] == "0.0010538190856564692"  # a file for programs has it whole
    said = (tmp_path / "summary.md").read_text()
    assert "0.00105 " in said and "val/bits_per_byte" in said and str(tmp_path) not in said

    result = {"status": "completed", "overrides": [], "metrics": {"val/loss": 1.0}}
    for path in tmp_path.glob("*/result.json"):
        path.write_text(json.dumps(result))
    write_summary(tmp_path)
    assert "bits_per_byte" not in (tmp_path / "summary.csv").read_text()


def test_figures_that_nobody_could_add_up_are_none() -> None:
    rows = [_row(job, 1.7e308, lr="1", seed=str(job)) for job in range(3)]
    assert [list(setting.values) for setting in settings(rows)] == [[]]
    assert len(ordered(rows)) == 3 and best_row(rows, "val/loss") is None

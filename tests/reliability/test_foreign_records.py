"""A folder of somebody else's whose `metrics.csv` or `rows.jsonl` is no such file."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xftrain.benchmark.rows import read_rows
from xftrain.errors import ConfigError, RunError
from xftrain.logger.csv import CSV


@pytest.mark.fault("hostile records")
def test_a_field_without_end_ends_in_a_sentence(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n1," + "x" * 200_000 + "\n")
    with pytest.raises(RunError, match=r"metrics\.csv cannot be read .*: move the file away"):
        CSV(tmp_path).cut_back(3, None)


@pytest.mark.fault("hostile records")
def test_lines_without_a_cell_for_each_column_are_no_rows(tmp_path):
    # each had one for each of all columns: a file of 170 KB took 10 GB
    columns = ",".join(f"c{n}" for n in range(2000))
    whole = "1" + "," * 2000 + "\n"
    (tmp_path / "metrics.csv").write_text(f"step,{columns}\n" + "1\n" * 1000 + whole)
    logger = CSV(tmp_path)
    assert logger.position() == 1
    logger.cut_back(3, None)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [whole.strip()]


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.fault("hostile records")
def test_rows_take_no_memory_while_they_are_counted_and_cut_back(tmp_path):
    # 12 MB took 1.2 GB
    path, num_rows = tmp_path / "metrics.csv", 20_000
    path.write_text("step\n" + "1\n" * num_rows)
    logger = CSV(tmp_path)
    with at_most(2 << 20):
        assert logger.position() == num_rows
        logger.cut_back(3, num_rows - 1)
        logger.close()
        logger.experiment.log_metrics({"new": 1}, 2)
    assert logger.position() == num_rows
    assert path.read_bytes().startswith(b"new,step\r\n,1\r\n")
    assert path.read_bytes().endswith(b",1\r\n1,2\r\n")


@pytest.mark.fault("hostile records")
def test_records_that_no_run_wrote_end_in_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    path.touch()
    os.truncate(path, 1 << 40)
    with at_most(16 << 20), pytest.raises(RunError, match="a line of more than"):
        CSV(tmp_path).position()
    path.write_text(",".join(map(str, range(10_001))) + "\n")
    with pytest.raises(RunError, match="more than 10,000 columns"):
        CSV(tmp_path).position()
    path.write_text("step\n" + "1\n" * 20)
    monkeypatch.setattr("xftrain.logger.csv._MAX_ROWS", 10)
    with pytest.raises(RunError, match="more than 10 rows.*: move the file away"):
        CSV(tmp_path).position()
    monkeypatch.setattr("xftrain.logger.csv._MAX_BYTES", 10)
    with pytest.raises(RunError, match="more than 10 bytes"):
        CSV(tmp_path).cut_back(1, None)


@pytest.mark.fault("hostile records")
@pytest.mark.parametrize("content", ["{}\n" * 1_001, " " * (2 << 20) + "{}\n"])
def test_rows_of_a_benchmark_without_end_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.setattr("xftrain.benchmark.rows._MAX_ROWS", 1_000)
    (tmp_path / "rows.jsonl").write_text(content)
    with at_most(32 << 20), pytest.raises(ConfigError, match="more than .*: delete it"):
        read_rows(tmp_path)

"""A folder of somebody else's whose `metrics.csv` is no such file."""

from __future__ import annotations

import pytest

from xftrain.errors import RunError
from xftrain.training.loggers.csv import CSV


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

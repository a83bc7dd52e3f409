"""Rows of a benchmark that anyone may have written are compared, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.compare_reports import main

ROW = {"cell": "c", "status": "ok", "device": "d", "ms": 1.0, "ms_p10": 1.0, "ms_p90": 1.0}


def _folder(path: Path, row: dict[str, Any]) -> str:
    path.mkdir()
    (path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return str(path)


def test_no_control_character_of_a_row_is_printed(tmp_path: Path, capsys) -> None:
    row = ROW | {"cell": "c\x1b]0;EVIL\x07\n| forged | row |"}
    slower = row | {"ms": 3.0, "ms_p10": 3.0, "ms_p90": 3.0}
    assert main([_folder(tmp_path / "a", row), _folder(tmp_path / "b", slower)]) == 1
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\n| forged" not in said and "SLOWER" in said


@pytest.mark.parametrize(
    "wrong", [{"cell": ["c"]}, {"status": None}, {"device": 1}, {"ms_p10": None}, {"ms": "x"}]
)
def test_what_is_no_row_is_refused_in_a_sentence(tmp_path: Path, capsys, wrong) -> None:
    good, bad = _folder(tmp_path / "a", ROW), _folder(tmp_path / "b", ROW | wrong)
    with pytest.raises(SystemExit) as refused:
        main([good, bad])
    assert refused.value.code == 2 and "no benchmark wrote" in capsys.readouterr().err


def test_a_number_of_thousands_of_digits_is_no_figure(tmp_path: Path) -> None:
    huge = ROW | {"extra_mib": 10**400}
    assert main([_folder(tmp_path / "a", huge), _folder(tmp_path / "b", huge)]) == 0

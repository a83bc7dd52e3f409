"""Two reports are compared by what the spread explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.compare_reports import compare, main


def _row(ms: float, spread: float = 0.1, **more: Any) -> dict[str, Any]:
    times = {"ms": ms, "ms_p10": ms - spread, "ms_p90": ms + spread}
    return {"cell": "c", "status": "ok", "device": "cpu", **times, **more}


@pytest.mark.parametrize(
    ("before", "after", "verdicts"),
    [
        (_row(1.0), _row(1.3), ["SLOWER"]),
        (_row(1.3), _row(1.0), ["faster"]),
        (_row(1.0), _row(1.15), [""]),  # within the spread
        (_row(1.0, 0.001), _row(1.03, 0.001), [""]),  # beyond it, and less than 5 %
        (_row(1.0, extra_mib=100.0), _row(1.0, extra_mib=110.0), ["", "LARGER"]),
        (_row(1.0, extra_mib=1.0), _row(1.0, extra_mib=1.5), ["", ""]),  # less than a MiB
        (_row(1.0, peak_mib=100.0), _row(1.0, peak_mib=200.0), ["", "LARGER"]),
        (_row(1.0, extra_mib=9.0, peak_mib=1.0), _row(1.0, extra_mib=9.0, peak_mib=99.0), ["", ""]),
        (_row(1.0, faults=""), _row(1.0, faults="dq"), ["", "WRONG"]),
        (_row(1.0), {**_row(1.0), "status": "oom"}, ["ok became oom"]),
        ({**_row(1.0), "status": "oom"}, _row(1.0), ["(oom became ok)"]),
    ],
)
def test_what_is_worse_is_flagged(
    before: dict[str, Any], after: dict[str, Any], verdicts: list[str]
) -> None:
    assert [verdict for *_, verdict in compare(before, after)] == verdicts


def test_the_script_ends_with_1_where_anything_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows in {
        "before": [_row(1.0), {**_row(1.0), "cell": "gone"}],
        "after": [_row(1.5)],
    }.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps(row) for row in rows]
        (tmp_path / name / "rows.jsonl").write_text("\n".join(lines) + "\n")
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    assert main([before, after]) == 1
    said = capsys.readouterr().out
    assert "1.50 x" in said and "SLOWER" in said and "only before: gone" in said
    assert main([before, before]) == 0
    with pytest.raises(SystemExit):
        main([before, str(tmp_path)])

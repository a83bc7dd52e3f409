"""The verdict names the fastest and the smallest, and says what it could not compare."""

from __future__ import annotations

from typing import Any

import pytest

from xftrain.benchmark.report import rows_for_verdict
from xftrain.benchmark.verdict import verdict


def _call(backend: str, ms: float | None, extra_mib: float | None = 10.0, **more: Any) -> dict:
    row = {"sweep": "attention_sweep", "backend": backend, "bias": "causal", "heads": "mha"}
    row |= {"M": 1024, "dtype": "float32", "status": "ok", "reason": None}
    row |= {"ms": ms, "extra_mib": extra_mib, "peak_mib": 500.0}
    if ms is not None:
        row |= {"ms_p10": 0.98 * ms, "ms_p90": 1.02 * ms}
    return row | more


def _training(backend: str, speed: float, peak_mib: float, **more: Any) -> dict:
    row = _call(backend, None) | {"sweep": "train_sweep", "ffn": "swiglu", "seq": 64}
    del row["M"]
    row |= {"tokens_per_s": speed, "peak_mib": peak_mib}
    return row | {"tokens_per_s_p10": 0.98 * speed, "tokens_per_s_p90": 1.02 * speed} | more


def _lost(backend: str, status: str, reason: str | None = None, **more: Any) -> dict:
    return _call(backend, None) | {"status": status, "reason": reason} | more


def _lines(rows: list[dict]) -> list[dict[str, str]]:
    """Parses the lines of the table into dicts by column title."""
    table = [line for line in verdict(rows).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_the_fastest_and_the_smallest_with_what_to_type() -> None:
    rows = [_call("sdpa", 1.0, 30.0), _call("flex", 2.0, 10.0), _call("naive", 9.0, 90.0)]
    assert _lines(rows) == [
        {
            "bias": "causal",
            "heads": "mha",
            "fastest": "sdpa 1.00 ms",
            "smallest": "flex 10.0 MiB",
            "override": "`model.attn=sdpa`, for memory `model.attn=flex`",
            "measured": "call, M = 1,024, float32",
        }
    ]


def test_training_steps_of_the_run_come_before_calls() -> None:
    rows = [_training("sdpa", 900.0, 300.0), _training("naive", 500.0, 200.0)]
    rows += [_training("naive", 9000.0, 1.0, ffn="gelu")]  # no backend has won by this
    (line,) = _lines([_call("naive", 0.1, 1.0), *rows])
    assert line["fastest"] == "sdpa 900 tokens/s" and line["smallest"] == "naive 200 MiB"
    assert line["measured"] == "training, seq 64, swiglu, float32"


def test_calls_are_compared_at_the_longest_length_at_which_all_ran() -> None:
    rows = [_call("naive", 1.0, M=512), _call("naive", 4.0, M=1024), _lost("naive", "oom", M=2048)]
    rows += [_call("sdpa", ms, M=m) for m, ms in ((512, 2.0), (1024, 3.0), (2048, 8.0))]
    (line,) = _lines(rows)
    assert line["fastest"] == "sdpa 3.00 ms" and "M = 1,024" in line["measured"]
    assert "- naive ran out of memory from M = 2,048 on: causal mha" in verdict(rows)


def test_a_tie_within_the_spread_is_no_victory() -> None:
    rows = [_call("naive", 1.0, 30.0), _call("sdpa", 1.015, 20.0), _call("flex", 1.2, 20.5)]
    (line,) = _lines(rows)
    assert line["fastest"] == "naive 1.00 ms, tied with sdpa"
    assert line["smallest"] == "sdpa 20.0 MiB, tied with flex"
    assert line["override"] == "`model.attn=sdpa`"  # of those tied the smaller one


def test_what_did_not_run_is_said_with_its_reason() -> None:
    rows = [_call("sdpa", 1.0), _lost("flex", "unsupported", "no backward on cpu")]
    rows += [_lost("naive", "timeout"), _lost("flex", "unsupported", "no backward on cpu", M=2048)]
    said = verdict(rows)
    assert _lines(rows)[0]["fastest"] == "sdpa 1.00 ms, the only one"
    assert "- flex was refused (no backward on cpu): causal mha\n" in said
    assert "- naive timed out: causal mha\n" in said


def test_a_backend_of_the_calls_alone_is_not_compared_with_training_steps() -> None:
    said = verdict([_training("sdpa", 900.0, 300.0), _call("flex", 0.1)])
    assert "- flex was measured in single calls only and is not compared: causal mha" in said


def test_a_backend_whose_results_are_wrong_wins_nothing() -> None:
    wrong = _call("flex", None, bias="window window=64", faults="dq has NaN", sweep="parity")
    rows = [_call("flex", 1.0, 1.0, bias="window"), _call("sdpa", 2.0, bias="window"), wrong]
    (line,) = _lines(rows)
    assert line["override"] == "`model.attn=sdpa`"
    assert "- flex gave wrong results (see Parity) and is not chosen: window mha" in verdict(rows)


def test_fields_and_own_classes_are_typed_as_they_are_chosen() -> None:
    rows = [_call("xformers op=cutlass", 1.0), _call("Mine", 1.0, bias="full")]
    assert [line["override"] for line in _lines(rows)] == [
        "`model.attn=xformers model.attn.op=cutlass`",
        "your own Mine",
    ]


@pytest.mark.parametrize("rows", [[], [{"sweep": "doctor", "kernel": "naive", "status": "ok"}]])
def test_nothing_compared_is_no_verdict(rows: list[dict]) -> None:
    assert verdict(rows) == ""


def test_where_nothing_ran_the_reasons_stand_alone() -> None:
    rows = [_lost("flex", "unsupported", "no backward on cpu")]
    assert _lines(rows)[0]["fastest"] == "-" and "- flex was refused (no backward" in verdict(rows)


def test_memory_that_is_not_known_above_the_inputs_is_the_peak() -> None:
    rows = [_call("sdpa", 1.0, None, peak_mib=300.0), _call("naive", 2.0, None, peak_mib=400.0)]
    assert _lines(rows)[0]["smallest"] == "sdpa 300 MiB"


def test_rows_of_other_settings_in_the_folder_give_way_to_those_of_this_run() -> None:
    old, new = _call("sdpa", 1.0), _call("naive", 2.0)
    parity = {"sweep": "parity", "backend": "naive"}
    found = rows_for_verdict([old, new, parity], {"attention_sweep": (None, [new])})
    assert found == [new, parity]

"""The scripts that measure: what two reports show, auto's choice, packing, the cost of safety."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import check_auto, compare_packing, measure_safety
from scripts.compare_reports import compare, main
from xftrain.interfaces import IGNORED_LABEL, Batch, positions_of
from xftrain.model.attn.auto import Auto
from xftrain.model.attn.naive import Naive
from xftrain.train.nonfinite import NonFiniteGuard


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


# ---- auto's choice


def test_a_choice_that_is_not_the_fastest_is_found(monkeypatch, capsys):
    monkeypatch.setattr(check_auto, "CASES", [check_auto.Case("packed", 64, 64)])
    monkeypatch.setattr("sys.argv", ["check_auto", "--device", "cpu", "--tokens", "64"])
    # no clock decides in a test: sdpa is the fastest, and auto takes naive
    fake = {"naive": 2.0, "sdpa": 1.0, "xformers": 1.5}
    monkeypatch.setattr(
        check_auto, "times_ms", lambda backends, *_, **__: [fake[b.name] for b in backends]
    )
    monkeypatch.setattr(Auto, "choose", lambda self, *_: setattr(self, "chosen", Naive()))
    assert check_auto.main() == 1
    assert "0 of 1 within 1.03" in capsys.readouterr().out
    monkeypatch.setitem(fake, "naive", 1.02)
    assert check_auto.main() == 0


def test_every_shape_of_the_check_has_a_backend_beside_naive():
    for case in check_auto.CASES:
        bias, shape = case.facts(), case.shape()
        assert sum(bias.seqlens or (shape.M,)) == shape.M
        assert shape.B * shape.M == 16384 and shape.H * shape.K == 1024
    assert len(set(check_auto.CASES)) == 20


# ---- packing


def test_padded_rows_hold_the_same_documents_and_labels():
    tokens, labels = torch.arange(1, 10)[None], torch.arange(2, 11)[None]
    batch = Batch(tokens, labels, positions_of(9, (4, 2, 3)), (4, 2, 3))
    padded = compare_packing.padded(batch)
    assert padded.tokens_BM.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]
    none = IGNORED_LABEL
    assert padded.labels_BM.tolist() == [[2, 3, 4, 5], [6, 7, none, none], [8, 9, 10, none]]
    assert padded.positions_1M.tolist() == [[0, 1, 2, 3]]


@pytest.mark.slow
def test_packed_and_padded_learn_the_same(tmp_path, monkeypatch, capsys):
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text("some words " * (8 + number))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["data.tokenizer=bytes", "seq=32", "batch_tokens=128", "model.num_layers=1"]
    words += ["trainer=cpu", "model.attn=sdpa"]
    arguments = ["--corpus", str(tmp_path), "--steps", "4", *words]
    monkeypatch.setattr("sys.argv", ["compare_packing", *arguments])
    assert compare_packing.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| pa")]
    packed, padded = (line.split("|") for line in lines)
    assert packed[-2] == padded[-2]  # the loss
    assert packed[2].strip() == "0%" != padded[2].strip()


def test_the_cost_of_safety_is_of_runs_with_and_without(monkeypatch, capsys):
    judged, judge = [], NonFiniteGuard.check_step

    def counted(self, *args):
        judged.append(1)
        judge(self, *args)

    monkeypatch.setattr(NonFiniteGuard, "check_step", counted)
    sizes = ("trainer=cpu", "model.num_layers=1", "seq=16", "batch_tokens=64")
    assert measure_safety.main(["--steps", "3", "--rounds", "1", *sizes]) == 0
    assert len(judged) == 2 * 3  # of four runs, two
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["with", "without", "cost"]

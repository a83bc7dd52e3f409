"""scripts/compare_learning.py: curves of loss, and the share of the cost at which they meet."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))  # as for a script that is started there
compare, curves = import_module("compare_learning"), import_module("learning.curve")
setups, report = import_module("learning.setup"), import_module("learning.report")
plain, framework = import_module("learning.plain"), import_module("learning.framework")


def curve(name: str, *points: tuple[int, float, float], seed: int = 0) -> Any:
    made = tuple(curves.Point(step, 10 * step, seconds, loss) for step, seconds, loss in points)
    return report.Curve(name, seed, made)


BASELINE = curve("slow", (100, 10.0, 5.0), (200, 20.0, 4.0), (400, 40.0, 3.0))
FAST = curve("fast", (100, 15.0, 3.5), (200, 30.0, 2.5))


def setup(name: str, folder: Path) -> Any:
    return setups.Setup(
        name,
        (),
        shared=(
            f"data.path={folder}",
            *compare.TINY,
            *compare.TINY_DATA,
            "optim.lr=0.01",
            "optim.weight_decay=0",
        ),
        steps=6,
        eval_every=3,
        device="cpu",
        precision="32-true",
        compile=False,
    )


def test_the_plain_script_and_xftrain_have_equal_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{n} and {n + 1}; " for n in range(900)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plain, "LR", 0.01)
    monkeypatch.setattr(plain, "WEIGHT_DECAY", 0.0)  # nanoGPT's is of embeddings, too
    own = framework.train(setup("adamw", tmp_path)).points
    other = plain.train(setup("nanogpt", tmp_path)).points
    assert [point.step for point in own] == [3, 6]
    assert [point[:2] for point in own] == [point[:2] for point in other]
    assert own[1].loss < own[0].loss - 0.01
    assert [p.loss for p in own] == pytest.approx([p.loss for p in other], abs=1e-4)
    assert 0 < own[0].seconds < own[1].seconds


def test_a_loss_is_reached_between_two_points() -> None:
    found = curves.reaches(FAST.points, 3.0)
    assert found[:3] == (150, 1500, pytest.approx(22.5))
    assert curves.reaches(FAST.points, 2.0) is None
    assert curves.reaches(FAST.points, 4.0) == FAST.points[0]


def test_the_table_has_shares_of_steps_and_seconds() -> None:
    again = replace(BASELINE, seed=1)
    failed = report.Curve("broken", 0, (), reason="crashed: it was killed")
    text = report.table([BASELINE, FAST, again, failed], "slow")
    fast, broken = (next(li for li in text.splitlines() if n in li) for n in ("fast", "broken"))
    assert "0.375" in fast and "0.562" in fast  # 150 of 400 steps, 22.5 of 40 s
    assert broken.count("-") == 5
    assert "`broken`, seed 0: crashed: it was killed" in text
    assert "not reached" in report.table([BASELINE, FAST], "fast")


def test_compilation_is_no_part_of_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = curves.CurveClock(torch.device("cpu"), 8)
    for step in range(1, 41):
        now[0] += 61.0 if step == 1 else 1.0
        clock.after_step(step)
        if step % 20 == 0:
            clock.pause()
            now[0] += 1000.0  # the validation
            clock.resume(1.0 / step)
    assert clock.start_up_s == pytest.approx(60.0)
    assert [point.seconds for point in clock.points] == pytest.approx([20.0, 40.0])
    assert [point.tokens for point in clock.points] == [160, 320]


@pytest.mark.parametrize("given", ["adamw", "nanogpt: seed=1", ": seed=1"])
def test_a_run_needs_a_name_and_a_colon(given: str) -> None:
    with pytest.raises(SystemExit):
        compare.arguments(["--data", "x", "--run", given])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a: seq=8", "b:", "a: seq=16"], "must give each run its own name, got a, b, a"),
        (["a: x='1"], "cannot be split into overrides (No closing quotation)"),
    ],
)
def test_no_run_is_lost_and_a_quote_is_closed(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last run of a name replaced the others, and an open quote was a traceback."""
    with pytest.raises(SystemExit):
        compare.arguments(["--data", "x", *(word for run in given for word in ("--run", run))])
    assert said in capsys.readouterr().err


def test_the_runs_of_a_seed_follow_one_another() -> None:
    args = compare.arguments(["--data", "x", "--run", "nanogpt", "--run", "b: seq=8 'tags=[a b]'"])
    found = compare.setups(args)
    assert [(s.name, s.seed) for s in found] == [
        *(("nanogpt", 0), ("b", 0), ("nanogpt", 1), ("b", 1)),
    ]
    assert found[1].overrides == ("seq=8", "tags=[a b]")
    assert "data.path=x" in setups.config_overrides(found[1])

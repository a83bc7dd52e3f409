"""scripts/compare_peers.py: the same model in every peer, and a row for each, whatever happens."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from xftrain.commands import builder
from xftrain.model.flops import flops_per_token
from xftrain.train.bf16_weights import weight_modifiers

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))  # as for a script that is started there
compare_peers = import_module("compare_peers")
setups, loop = import_module("peers.setup"), import_module("peers.loop")
stopwatch, nanogpt = import_module("peers.stopwatch"), import_module("peers.nanogpt")
report = import_module("peers.report")


def setup(peer: str, shape: str = "124m", **changes: Any) -> Any:
    """One measurement of five steps on a CPU, at a rate at which a slip shows in the losses."""
    sizes = setups.SHAPES[shape].tiny()
    made = setups.Setup(
        peer, sizes, steps=4, warmup=1, device="cpu", precision="32-true", compile=False, lr=0.02
    )
    return replace(made, **changes)


# ---- the same model, the same training


def test_the_plain_script_and_the_bare_loop_have_the_losses_of_xftrain() -> None:
    losses = {
        peer: import_module(f"peers.{module}").measure(setup(peer))["losses"]
        for peer, module in {
            "xftrain:sdpa": "framework",
            "bare": "bare",
            "nanogpt": "nanogpt",
        }.items()
    }
    expected = losses.pop("xftrain:sdpa")
    assert len(expected) == 5
    assert expected[-1] < expected[0] - 0.1  # it learns, so that the updates are compared as well
    for found in losses.values():
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shape", ["124m", "llama_1b"])
def test_operations_are_counted_as_xftrain_counts_its_own(shape: str) -> None:
    made = setup("bare", shape)
    options = loop.run_config(made)
    data = builder.build_data(options)
    model, batch = builder.build_model(options, data), data.batch("train", 0)
    counted = stopwatch.model_flops(model, model.head.weight, made.sizes, batch)
    assert counted == flops_per_token(model, batch)
    if shape == "124m":
        plain = nanogpt.NanoGPT(made.sizes)
        assert stopwatch.model_flops(plain, plain.lm_head.weight, made.sizes, batch) == counted


def test_a_name_says_the_backend_and_the_overrides() -> None:
    named = setup("xftrain:naive:loss=chunked+seed=3", overrides=("optim.eps=1e-6",))
    options = loop.run_config(setups.Setup.from_dict(json.loads(json.dumps(named.as_dict()))))
    assert options.model.attn.name == "naive"
    assert (options.loss.name, options.seed, options.optim.options["eps"]) == (
        "chunked",
        3,
        1e-6,
    )
    plain = loop.run_config(named.without_overrides())  # what the other peers take their data from
    assert (plain.loss.name, plain.seed, plain.optim.options["eps"]) == ("auto", 0, 1e-8)


@pytest.mark.parametrize("peers", ["nanogtp", "nanogpt,", "litgpt:sdpa"])
def test_a_name_that_is_none_is_refused(peers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_peers.main(["--peers", peers])
    assert "no such peer: " in capsys.readouterr().err


# ---- a row for each


@pytest.mark.long
def test_a_peer_that_is_not_installed_is_a_row_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = "raise ModuleNotFoundError(\"No module named 'litgpt'\", name='litgpt')\n"
    (tmp_path / "litgpt.py").write_text(absent)  # also where it is installed
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    out = tmp_path / "out"
    words = ["--tiny", "--device", "cpu", "--peers", "litgpt,nanogpt", "--out", str(out)]

    assert compare_peers.main(words) == 0

    with (out / "peers.csv").open(newline="") as file:
        missing, ran = csv.DictReader(file)
    assert (missing["peer"], missing["status"]) == ("litgpt", "missing")
    assert missing["reason"] == "no module named litgpt"
    assert (ran["peer"], ran["status"], float(ran["ratio"])) == ("nanogpt", "ok", 1.0)
    assert float(ran["tokens_per_s"]) == pytest.approx(2 * 32 * 1e3 / float(ran["ms_per_step"]))
    assert {path.name for path in out.iterdir()} == {
        "environment.json",
        "peers.csv",
        "peers.log",
        "peers.md",
        "peers.png",
    }
    text = (out / "peers.md").read_text()
    assert "- `litgpt`: not installed: no module named litgpt\n" in text
    assert capsys.readouterr().out.endswith(text.partition("\n\n")[2])


def test_a_process_that_dies_or_hangs_is_a_row(tmp_path: Path) -> None:
    def outcome(code: str, timeout_s: float = 60.0) -> Any:
        command = [sys.executable, "-c", code]
        log = tmp_path / "log"
        return compare_peers.outcome_of(command, tmp_path / "row.json", timeout_s, log)

    killed = outcome("import os; os.kill(os.getpid(), 9)")
    assert killed["status"] == "crashed"
    assert killed["reason"].startswith("the process was ended by SIGKILL")
    left = outcome("import sys; sys.exit('the last words')")
    assert left == {
        "status": "crashed",
        "reason": "the process ended with code 1: the last words",
    }
    began = time.monotonic()
    assert outcome("import time; time.sleep(60)", 0.5)["status"] == "timeout"
    assert time.monotonic() - began < 30
    row = f"open({str(tmp_path / 'row.json')!r}, 'w').write('{{\"status\": \"oom\"}}')"
    assert outcome(row) == {"status": "oom"}


def row(peer: str, tokens_per_s: float | None, **more: Any) -> dict[str, Any]:
    if tokens_per_s is None:
        return {"peer": peer, "status": "oom", "reason": "too | large", **more}
    measured = {"tokens_per_s": tokens_per_s, "ms_per_step": 1e6 / tokens_per_s, "mfu": 0.25}
    model = {"peak_gib": 1.5, "loss": 2.0, "parameters": 1000, "model": "", "kernel": ""}
    return {"peer": peer, "status": "ok", "reason": "", **measured, **model, **more}


def test_the_ratio_is_that_of_the_median_speeds() -> None:
    speeds = {"nanogpt": [80.0, 100.0, 400.0], "litgpt": [50.0, None, 40.0], "bare": [None, None]}
    rows = [row(peer, speed) for peer, series in speeds.items() for speed in series]
    found = {one["peer"]: one for one in report.median_rows(rows, "nanogpt")}
    assert {peer: one["ratio"] for peer, one in found.items()} == {
        "nanogpt": 1.0,
        "litgpt": 0.4,
        "bare": None,
    }
    assert [one["ratio"] for one in report.median_rows(rows, "bare")] == [None, None, None]
    lines = report.table([*found.values()], "nanogpt").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines[:5]]
    assert cells[0] == ["peer", "ms/step", "tokens/s", "of nanogpt"]
    assert cells[3] == ["litgpt", "25000.00", "40", "0.400"]
    assert cells[4] == ["bare", "out of memory", "-", "-"]
    assert lines[-1] == "- `bare`: out of memory: too \\| large"


def test_the_clock_in_a_run_of_xftrain_changes_nothing_in_it() -> None:
    framework = import_module("peers.framework")
    assert weight_modifiers([framework.TimingCallback]) == []


def test_each_override_of_a_peer_has_a_line_of_its_own_in_the_picture() -> None:
    said = {
        "litgpt": "litgpt",
        "xftrain:sdpa": "xftrain:sdpa",
        "xftrain:sdpa:loss=fused+loss.chunk_tokens=8192": "xftrain:sdpa\nloss=fused\n"
        "loss.chunk_tokens=8192",
    }
    assert {peer: report.label_of(peer) for peer in said} == said

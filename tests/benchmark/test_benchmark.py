"""The suite as a user runs it: all benchmarks, small; what they leave; stopped and started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import forked
from xftrain import compose, run
from xftrain.benchmark.rows import read_rows
from xftrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.attn=naive",
    "batch_tokens=128",
    "max_steps=2",
    "callbacks.doctor.dtypes=[float32]",
    "callbacks.parity.length=32",
    "callbacks.parity.heads=[mha,gqa]",
    "callbacks.packed.lengths=[3,12,1]",
    "callbacks.grouped.length=32",
    "callbacks.alibi.lengths=[16]",
    "callbacks.attention_sweep.lengths=[16,32,64]",
    "callbacks.attention_sweep.biases=[full,{name: window, window: 8}]",
    "callbacks.attention_sweep.longest=256",
    "callbacks.train_sweep.attn=[naive,sdpa]",
    "callbacks.train_sweep.heads=[mha]",
    "callbacks.train_sweep.ffn=[gelu]",
]
BACKENDS = {"naive", "sdpa", "xformers", "flex"}  # others may have been added
BENCHMARKS = ("doctor", "parity", "packed", "grouped", "alibi", "attention_sweep", "train_sweep")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        forked.fork_workers(patch)
        result = run(compose(*SMALL, config_name="benchmark"), run_dir)
    assert result["status"] == "completed"
    return run_dir


def _of(run_dir: Path, benchmark: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run_dir) if row["sweep"] == benchmark]


def test_every_cell_is_a_row_and_what_did_not_run_says_why(finished: Path) -> None:
    rows = read_rows(finished)
    assert {row["sweep"] for row in rows} == {"peak", *BENCHMARKS}
    assert max(Counter(row["cell"] for row in rows).values()) == 1
    for row in rows:
        assert row["status"] == "ok" or (row["status"] == "unsupported" and row["reason"])
        assert row["device"] and row["torch"]
    refused = [row for row in rows if row["status"] == "unsupported"]
    assert {row["backend"] for row in refused if "backend" in row} & BACKENDS == {"flex"}


def test_doctor_says_what_runs(finished: Path) -> None:
    rows = {row["kernel"]: row for row in _of(finished, "doctor")}
    assert all(rows[name]["backward"] and rows[name]["right"] for name in ("naive", "sdpa-math"))
    assert rows["flex"]["status"] == rows["sdpa-cudnn"]["status"] == "unsupported"


def test_parity_is_right_on_every_backend_of_the_cpu(finished: Path) -> None:
    rows = [row for row in _of(finished, "parity") if row["status"] == "ok"]
    assert {row["backend"] for row in rows} & BACKENDS == {"naive", "sdpa", "xformers"}
    assert {row["layout"] for row in rows} == {"rows", "packed"}
    for row in rows:
        assert row["faults"] == "" and 0 < row["worst"] <= 2 and row["error_dq"] < 1e-5


def test_packed_documents_are_those_run_alone(finished: Path) -> None:
    rows = [row for row in _of(finished, "packed") if row["status"] == "ok"]
    packed = [row for row in rows if row["layout"] == "packed"]
    assert len(packed) == 3 and {row["tokens"] for row in packed} == {16}
    for row in packed:
        assert row["error_packed"] <= 2 * row["error_alone"] < 1e-5
    assert {row["tokens"] for row in rows if row["layout"] == "padded"} == {36}


def test_grouping_shrinks_the_cache(finished: Path) -> None:
    by_heads = {row["heads"]: row for row in _of(finished, "grouped")}
    cache = {heads: row["kv_bytes_per_token"] for heads, row in by_heads.items()}
    assert cache["mha"] == 8 * cache["gqa"] == 16 * cache["mqa"] == 2 * 3 * 16 * 64 * 4
    parameters = [by_heads[heads]["parameters"] for heads in ("mha", "gqa", "mqa")]
    assert parameters == sorted(parameters, reverse=True)


def test_alibi_has_every_way_and_its_errors(finished: Path) -> None:
    rows = {row["way"]: row for row in _of(finished, "alibi") if row["status"] == "ok"}
    assert {"folded, sdpa", "folded, xformers", "dense, xformers", "dense, naive"} <= rows.keys()
    assert all(row["error_out"] < 1e-5 for row in rows.values())


def test_times_have_their_spread_and_memory_its_parts(finished: Path) -> None:
    rows = [r for r in _of(finished, "attention_sweep") if r["status"] == "ok" and "ms" in r]
    assert {row["M"] for row in rows} == {16, 32, 64}
    for row in rows:
        assert 0 < row["ms_p10"] <= row["ms"] <= row["ms_p90"] and row["repetitions"] >= 5
        assert 0 < row["fwd_ms"] < row["ms_p90"] and row["tflops"] > 0 and row["peak_share"] > 0
        assert row["mask_ms"] >= 0
    longest = [row for row in _of(finished, "attention_sweep") if "longest_tokens" in row]
    assert {row["longest_tokens"] for row in longest} == {256}


def test_training_rows_are_runs_of_the_same_model(finished: Path) -> None:
    rows = _of(finished, "train_sweep")
    assert [row["backend"] for row in rows] == ["naive", "sdpa"]
    for row in rows:
        assert row["tokens_per_s"] > 0 and row["repetitions"] == 6 and row["peak_mib"] > 50
        # 128 tokens a step, in units that agree; a machine with other work has steps of many times
        assert 128 / 4 < row["step_ms"] * row["tokens_per_s"] / 1e3 < 128 * 4


def test_the_report_has_tables_and_plots(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    for heading in ("Which kernels run here", "Parity with float64", "Training steps"):
        assert f"## {heading}" in report
    assert "| seqlen | naive MB | xformers MB | naive ms | xf ms |" in report
    assert report.index("## Which attention to use") < report.index("## What it was measured on")
    assert "memory grows" in report and " matmul in " in report
    plots = {path.name for path in (finished / "plots").iterdir()}
    assert {f"attention_sweep-{n}.png" for n in ("time", "memory", "rate", "heat")} <= plots
    for name in plots:
        assert f"(plots/{name})" in report
        assert (finished / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_scalars_over_length_images_and_text(finished: Path) -> None:
    board = EventAccumulator(str(finished))
    board.Reload()
    tags = board.Tags()
    points = board.Scalars("benchmark/attention_sweep/ms/full mha naive")
    assert [point.step for point in points] == [16, 32, 64]
    assert all(point.value > 0 for point in points)
    assert "benchmark/attention_sweep/time" in tags["images"]
    assert "benchmark/attention_sweep/text_summary" in tags["tensors"]
    assert "benchmark/Which attention to use/text_summary" in tags["tensors"]


def test_a_finished_benchmark_is_not_measured_again(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (finished / "rows.jsonl").read_text()
    caplog.set_level("INFO")
    run(compose(*SMALL, config_name="benchmark"), finished)
    assert (finished / "rows.jsonl").read_text() == before
    assert "doctor: 7 of 7 cells are in the run folder already" in caplog.text


@pytest.mark.usefixtures("forked_workers")
def test_a_sweep_is_left_out_and_one_is_added_to_training(tmp_path: Path) -> None:
    cfg = compose("~callbacks.packed", "~callbacks.parity", config_name="benchmark")
    assert "packed" not in cfg.callbacks and "doctor" in cfg.callbacks
    key = "callbacks.attention_sweep"
    few = [f"{key}.lengths=[16]", f"{key}.backends=[naive]", f"{key}.biases=[causal]"]
    cfg = compose("callbacks=[default,attention_sweep]", "batch_tokens=128", "max_steps=2", *few)
    assert run(cfg, tmp_path)["status"] == "completed"
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert len(_of(tmp_path, "attention_sweep")) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("callbacks.parity.backends=[naiv]", "did you mean naive"),
        ("callbacks.parity.biases=[{name: window, size: 3}]", "window"),
        ("callbacks.attention_sweep.lengths=[0]", "callbacks.attention_sweep.lengths must be"),
        ("callbacks.attention_sweep.dtype=float8", "must be one of auto, float32"),
        ("callbacks.packed.lengths=zipf", "callbacks.packed.lengths must be"),
        ("callbacks.grouped.backends=[naive,naive]", "lists"),
        ("callbacks.grouped.num_heads=3 callbacks.grouped.heads=[gqa]", "num_kv_heads"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path: Path, override: str, said: str) -> None:
    wanted = override.split(".")[1]
    others = [f"~callbacks.{name}" for name in BENCHMARKS if name != wanted]
    words = override.split(" callbacks") if " callbacks" in override else [override]
    typed = [words[0], *(f"callbacks{word}" for word in words[1:])]
    with pytest.raises(ConfigError, match=said):
        run(compose(*others, *SMALL[:3], *typed, config_name="benchmark"), tmp_path)


def _children(pid: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    return {int(word) for word in listed.split()}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes as Linux lists them")
@pytest.mark.long
def test_a_killed_benchmark_does_the_rest_only_and_leaves_no_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    left_out = [name for name in BENCHMARKS if name not in ("parity", "attention_sweep")]
    small = [o for o in SMALL if not any(f"callbacks.{name}." in o for name in left_out)]
    words = ["--config-name", "benchmark", *small, *(f"~callbacks.{name}" for name in left_out)]
    few = {"lengths": "[16]", "biases": "[causal]", "backends": "[naive]", "longest": "32"}
    words += [f"callbacks.attention_sweep.{key}={value}" for key, value in few.items()]
    words += [f"hydra.run.dir={run_dir}"]

    first = subprocess.Popen(
        [sys.executable, "-m", "xftrain", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    rows = run_dir / "rows.jsonl"
    for _ in range(600):
        if rows.is_file() and rows.read_text().count("\n") >= 10:
            break
        time.sleep(0.1)
    workers = _children(first.pid)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = rows.read_text()
    assert before.count("\n") >= 10 and "attention_sweep" not in before
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"processes are left: {workers}")

    second = forked.ended(forked.main, words, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    after = rows.read_text()
    complete = before[: before.rfind("\n") + 1]
    assert after.startswith(complete)
    kept = complete.count("\n")
    found = [json.loads(line) for line in after.splitlines()]
    total = sum(row["sweep"] == "parity" for row in found)
    assert f"parity: {kept} of {total} cells are in the run folder already" in second.stdout
    assert {row["sweep"] for row in found} >= {"parity", "attention_sweep"}
    assert max(Counter(row["cell"] for row in found).values()) == 1


@pytest.mark.parametrize("name", ["progress", "grouped"])
def test_doctor_takes_sweeps_that_need_no_run(tmp_path: Path, name: str) -> None:
    cfg = compose(f"callbacks={name}", config_name="doctor")
    with pytest.raises(ConfigError, match=f"callbacks.{name} needs a training run"):
        run(cfg, tmp_path)


@pytest.mark.usefixtures("forked_workers")
def test_doctor_is_a_command_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cfg = compose("callbacks.doctor.dtypes=[float32]", "accelerator=cpu", config_name="doctor")
    result = run(cfg, tmp_path)
    assert (result["status"], result["steps"], result["device"]) == ("completed", 0, "cpu")
    assert "| naive              | runs    |" in caplog.text
    assert (tmp_path / "report.md").is_file() and (tmp_path / "result.json").is_file()


@pytest.mark.long
def test_sigterm_in_a_sweep_ends_with_143_and_says_so(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "xftrain", "--config-name", "doctor", f"hydra.run.dir={run_dir}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (run_dir / "rows.jsonl").is_file():
            break
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and said == "xftrain: stopped by SIGTERM.\n"
    assert json.loads((run_dir / "result.json").read_text())["status"] == "stopped"


@pytest.mark.cuda
def test_the_benchmark_on_cuda(tmp_path: Path) -> None:
    result = run(compose(*SMALL[1:], "trainer=gpu", config_name="benchmark"), tmp_path)
    assert result["status"] == "completed"
    rows = read_rows(tmp_path)
    assert {row["status"] for row in rows} <= {"ok", "unsupported"}
    timed = [row for row in rows if row.get("ms") and row["sweep"] == "attention_sweep"]
    assert {row["backend"] for row in timed} >= BACKENDS
    assert all(row["loop_ms"] > 0 and row["extra_mib"] > 0 for row in timed)

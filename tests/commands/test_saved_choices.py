"""What `auto` chose is saved with a checkpoint and taken up by the run that resumes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.checkpoint.test_checkpoint import power_cut
from tests.train.runs import last, run, same_weights
from xftrain.checkpoint.file import read_checkpoint
from xftrain.kernels import matmul
from xftrain.kernels.cublaslt import CublasError, Epilogue
from xftrain.kernels.saved_matmul import Choice
from xftrain.model.attn import auto, sdpa

STEPS = ("model.attn=auto", "data.stop_at_accuracy=null", "max_steps=4")


@pytest.fixture
def fastest(monkeypatch) -> Any:
    """Selects the fastest backend instead of timing; with None, a measurement fails the test."""

    def choose(name: str | None) -> None:
        def times(backends: list[Any], *_: Any, **__: Any) -> list[float]:
            assert name is not None, "measured again"
            return [0.5 if backend.name == name else 1.0 for backend in backends]

        monkeypatch.setattr(auto, "times_ms", times)

    return choose


def test_a_resumed_run_takes_up_the_attention_that_was_chosen(tmp_path, fastest, caplog):
    # another one was the fastest that time, and the weights differed without a word
    fastest("sdpa")
    run(tmp_path / "whole", *STEPS)
    run(tmp_path / "cut", *STEPS, "max_steps=2", "schedule=constant")
    saved = read_checkpoint(last(tmp_path / "cut"))["callbacks"]["Choices"]
    assert saved["attn"] == "sdpa"
    fastest(None)
    with caplog.at_level("INFO"):
        result = run(tmp_path / "cut", *STEPS, "ckpt=auto")
    assert result["kernel"].startswith("sdpa")
    assert "auto chooses sdpa, as the resumed run did" in caplog.text
    again = read_checkpoint(last(tmp_path / "cut"))["callbacks"]["Choices"]
    assert again["attn"] == "sdpa"  # for the next one


def test_the_run_is_bitwise_the_same(tmp_path, fastest):
    fastest("naive")
    run(tmp_path / "whole", *STEPS)
    run(tmp_path / "cut", *STEPS, "callbacks.checkpoint.every_n_steps=2")
    (tmp_path / "cut" / "checkpoints" / "previous.ckpt").replace(last(tmp_path / "cut"))
    fastest("sdpa")
    run(tmp_path / "cut", *STEPS, "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


def test_a_run_that_was_killed_before_its_first_save_keeps_its_attention(tmp_path, fastest):
    fastest("naive")
    with power_cut(at_batch=1):
        run(tmp_path, *STEPS)
    fastest(None)
    assert run(tmp_path, *STEPS, "ckpt=auto")["kernel"] == "naive"
    fastest("sdpa")  # of a new run, and of other sizes
    assert run(tmp_path, *STEPS)["kernel"].startswith("sdpa")
    fastest("naive")
    with power_cut(at_batch=1):
        run(tmp_path / "other", *STEPS)
    fastest("sdpa")
    assert run(tmp_path / "other", *STEPS, "seq=8", "ckpt=auto")["kernel"].startswith("sdpa")


def test_what_cannot_run_here_is_chosen_again_with_a_word(tmp_path, fastest, monkeypatch, caplog):
    fastest("sdpa")
    run(tmp_path, *STEPS, "max_steps=2")
    monkeypatch.setattr(sdpa.SDPA, "reasons", lambda *_, **__: ["no such kernel"])
    fastest("naive")
    with caplog.at_level("INFO"):
        assert run(tmp_path, *STEPS, "ckpt=auto")["kernel"] == "naive"
    said = "auto chooses again, as sdpa of the resumed run cannot run here (no such kernel)"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("name", ["flex", "auto", "no\x1b[31msuch", 5])
def test_a_choice_of_a_strange_checkpoint_is_no_choice(tmp_path, fastest, name, caplog):
    fastest("sdpa")
    run(tmp_path, *STEPS, "max_steps=2")
    content = torch.load(last(tmp_path))
    content["callbacks"]["Choices"] |= {"attn": name, "matmul": "x", "ran_as": [1]}
    torch.save(content, last(tmp_path))
    assert run(tmp_path, *STEPS, "ckpt=auto")["kernel"].startswith("sdpa")
    assert "\x1b" not in caplog.text


def test_another_machine_is_said(tmp_path, caplog):
    run(tmp_path, *STEPS, "max_steps=2")
    content = torch.load(last(tmp_path))
    content["callbacks"]["Choices"]["ran_as"] |= {"device": "NVIDIA H200", "loss": "Fused"}
    torch.save(content, last(tmp_path))
    with caplog.at_level("INFO"):
        run(tmp_path, *STEPS, "ckpt=auto")
    said = "with another loss (Fused -> Full), device (NVIDIA H200 -> cpu)"
    assert caplog.text.count(said) == 1


# ---- matmuls, of a cuBLASLt that proposes three algorithms


class Plan:
    proposals = (0, 1, 2)
    names = ("slow", "fast", "refused")

    def __init__(self, *_: Any) -> None:
        self.launched: list[int] = []

    def name(self, number: int) -> str:
        return self.names[number]

    def launch(self, number: int, a: Any, b: Any, out: Any, second: Any) -> None:
        if self.names[number] == "refused":
            raise CublasError("status 15")
        self.launched.append(number)
        torch.mm(a, b, out=out)


@pytest.fixture
def measured(monkeypatch) -> list[tuple[Any, ...]]:
    """Records the measured matmuls, and makes the algorithm `fast` the fastest."""
    found: list[tuple[Any, ...]] = []

    def measure(epilogue: Any, a: Any, b: Any, *_: Any) -> Choice:
        found.append((a.shape, b.shape))
        return Choice(Plan(), 1)  # type: ignore[arg-type]

    monkeypatch.setattr(matmul, "_fastest_algorithm", measure)
    monkeypatch.setattr("xftrain.kernels.saved_matmul.Plan", Plan)
    monkeypatch.setattr(matmul, "has_cublaslt", lambda: True)
    monkeypatch.setattr(matmul, "is_supported", lambda *matrices: True)
    monkeypatch.setattr(matmul, "_MIN_FLOP", 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with matmul.autotuner_set(None):
        yield found


def tuned(saved: dict[str, str | None] | None = None) -> matmul.Autotuner:
    tuner = matmul.Autotuner(saved)
    matmul._setting.tuner = tuner  # until the fixture `measured` ends
    return tuner


def multiply(rows: int) -> None:
    a, b = torch.ones(rows, 8), torch.ones(8, 8)
    out = matmul.matmul_(a, b, torch.empty(rows, 8))
    torch.testing.assert_close(out, a @ b)


def test_saved_algorithms_are_taken_up_and_new_products_measured(measured, caplog):
    tuner = tuned()
    multiply(4)
    saved = tuner.algorithm_names()
    assert list(saved.values()) == ["fast"] and len(measured) == 1
    tuner = tuned(saved)
    multiply(4)
    assert len(measured) == 1 and tuner.algorithm_names() == saved
    multiply(5)
    assert len(measured) == 2 and len(tuner.algorithm_names()) == 2
    tuner = tuned(dict.fromkeys(saved, None))  # torch's own was the fastest
    multiply(4)
    assert len(measured) == 2 and list(tuner.algorithm_names().values()) == [None]
    assert not caplog.text


@pytest.mark.parametrize("name", ["refused", "of another version"])
def test_an_algorithm_that_is_not_here_is_measured_again_with_a_word(measured, caplog, name):
    tuner = tuned()
    multiply(4)
    saved = dict.fromkeys(tuner.algorithm_names(), name)
    with caplog.at_level("INFO"):
        tuner = tuned(saved)
        multiply(4)
        multiply(4)
    assert len(measured) == 2 and list(tuner.algorithm_names().values()) == ["fast"]
    assert caplog.text.count("matmul: measured again") == 1


def test_the_choices_are_in_the_checkpoint(tmp_path, monkeypatch):
    made = {"NONE torch.bfloat16": "66-24-1-0-0-7-35-0-5"}
    begun: list[Any] = []

    class Tuner(matmul.Autotuner):
        def __init__(self, saved):
            begun.append(saved)
            super().__init__(made)

    monkeypatch.setattr("xftrain.commands.train.Autotuner", Tuner)
    run(tmp_path, *STEPS, "max_steps=2")
    assert read_checkpoint(last(tmp_path))["callbacks"]["Choices"]["matmul"] == [made]
    run(tmp_path, *STEPS, "ckpt=auto")
    assert begun == [{}, made]


@pytest.mark.cuda
def test_on_a_gpu_the_algorithms_have_names_that_tell_them_apart():
    from xftrain.kernels.cublaslt import Plan as Real
    from xftrain.kernels.cublaslt import library

    small = torch.ones(8, 8, device="cuda", dtype=torch.float16)
    small.mm(small)
    library()
    a = torch.randn(8192, 1024, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16).t()
    for epilogue in Epilogue:
        plans = Real(a, b, epilogue), Real(a, b, epilogue)
        names = [[plan.name(i) for i in range(len(plan.proposals))] for plan in plans]
        assert names[0] == names[1] and len(set(names[0])) == len(names[0])

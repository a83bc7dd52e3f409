"""data.packing=null is true where the backend packs at full speed, and stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.runs import last, run, same_weights
from tests.train.test_same_data import corpus
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands.packing_choice import _reason_against
from xftrain.config.compose import compose, validate_as
from xftrain.config.run_config import RunConfig
from xftrain.model.attn.sdpa import SDPA
from xftrain.model.backends import all_backends

WORDS = ("data=text", "seq=32", "batch_tokens=128", "model.attn=sdpa")


@pytest.fixture
def text(tmp_path: Path) -> str:
    return f"data.path={corpus(tmp_path / 'corpus')}"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU packs at full speed with sdpa."""
    monkeypatch.setattr(SDPA, "packs_at_full_speed", lambda self, device: True)


def packing(run_dir: Path) -> Any:
    return read_checkpoint(last(run_dir))["xftrain"]["config"]["data"]["packing"]


def test_the_backend_that_was_measured_declares_it_for_gpus() -> None:
    # on an H200, 124M packed best_fit: xformers 603, sdpa 72 thousand tokens/s
    assert not any(b.packs_at_full_speed(torch.device("cpu")) for b in all_backends())
    fast = {b.name for b in all_backends() if b.packs_at_full_speed(torch.device("cuda"))}
    assert fast == {"xformers"}


def test_on_a_cpu_rows_are_plain(tmp_path: Path, text: str, caplog: Any) -> None:
    caplog.set_level("INFO")
    run(tmp_path / "run", *WORDS, text, "max_steps=1")
    assert packing(tmp_path / "run") is False
    said = "because model.attn=sdpa does not compute packed rows at full speed on cpu"
    assert f"data.packing=null: false, {said}" in caplog.text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), None),
        (("model.attn=auto",), None),
        (("model.attn=naive",), "model.attn=naive does not compute"),
        (("data.packing=false",), None),
        (("data.packing=best_fit",), None),
    ],
)
def test_where_it_is_fast_rows_are_packed_unless_typed_otherwise(
    tmp_path: Path, text: str, fast: None, caplog: Any, words: tuple[str, ...], reason: str | None
) -> None:
    caplog.set_level("INFO")
    run(tmp_path / "run", *WORDS, text, "max_steps=1", *words)
    typed = {"data.packing=false": False, "data.packing=best_fit": "best_fit"}
    expected = typed.get(words[0] if words else "", reason is None)
    assert packing(tmp_path / "run") == expected
    assert (f"data.packing=null: {str(expected).lower()}" in caplog.text) is (
        not any(word.startswith("data.packing") for word in words)
    )
    assert reason is None or reason in caplog.text


@pytest.mark.parametrize("fast", [False, True])
def test_a_resumed_run_keeps_its_rows_on_another_device(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    words = (*WORDS, text, "schedule=constant", "trainer.val_check_interval=2")
    monkeypatch.setattr(SDPA, "packs_at_full_speed", lambda self, device: fast)
    run(tmp_path / "whole", *words, "max_steps=4")
    run(tmp_path / "cut", *words, "max_steps=2")
    monkeypatch.setattr(SDPA, "packs_at_full_speed", lambda self, device: not fast)
    assert run(tmp_path / "cut", *words, "max_steps=4", "ckpt=auto")["steps"] == 4
    assert packing(tmp_path / "cut") is fast
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


def test_a_run_from_before_resumes_with_its_plain_rows(
    tmp_path: Path, text: str, fast: None, caplog: Any
) -> None:
    caplog.set_level("INFO")
    run(tmp_path / "old", *WORDS, text, "max_steps=1", "data.packing=false")
    ckpt = f"ckpt={last(tmp_path / 'old')}"
    assert run(tmp_path / "new", *WORDS, text, ckpt, "max_steps=2")["steps"] == 2
    assert packing(tmp_path / "new") is False
    assert "data.packing=null: false, as the resumed run has it" in caplog.text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("compile=cudagraphs",), "because compile=cudagraphs replays batches of one shape"),
        (("+model.bias._target_=a.B", "~model.bias.name"), "model.bias is a class of your own"),
        ((), "None"),
    ],
)
def test_what_packing_would_break_keeps_plain_rows(
    text: str, fast: None, words: tuple[str, ...], reason: str
) -> None:
    cfg = validate_as(RunConfig, compose("data=text", text, "model.attn=sdpa", *words))
    found = _reason_against(cfg, torch.device("cpu"), torch.float32)
    assert reason in str(found)

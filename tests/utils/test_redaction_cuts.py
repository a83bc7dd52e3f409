"""A secret is hidden before a text is cut: the halves of one are not found afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended, one_sentence
from xftrain.benchmark.pool import _sanitized as shown_row
from xftrain.benchmark.worker import outcome
from xftrain.config.composition_errors import sentence
from xftrain.multirun.record import _short
from xftrain.utils.read_variables import READ

KEY = "H" + "".join(f"{number}kZ" for number in range(900))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READ, "values", {})
    monkeypatch.setenv("XFTRAIN_TEST_KEY", KEY)


def _is_in(text: str) -> bool:
    """Whether ten characters of the key are in a text."""
    return any(KEY[at : at + 10] in text for at in range(len(KEY) - 9))


@pytest.mark.parametrize("key", ["max_steps", "model.attn", "seed"])
def test_a_long_secret_is_in_no_sentence_and_no_file(
    command: Callable[..., Ended], tmp_path: Path, key: str
) -> None:
    ended = command(f"{key}=${{oc.env:XFTRAIN_TEST_KEY}}")
    said = one_sentence(ended, 2)
    assert "${oc.env:XFTRAIN_TEST_KEY}" in said and not _is_in(ended.out + ended.err)
    assert "hydra.run.dir" not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if _is_in(path.read_text())] == []


@pytest.mark.parametrize(
    "typed",
    [
        ("data=text", "data.path=${oc.env:XFTRAIN_TEST_KEY}"),
        ("ckpt=${oc.env:XFTRAIN_TEST_KEY}",),
        ("ckpt=a/${oc.env:XFTRAIN_TEST_KEY}/b",),
        ("--config-name", "sample", "ckpt=${oc.env:XFTRAIN_TEST_KEY}"),
    ],
)
def test_a_path_that_is_too_long_is_refused_without_its_text(
    command: Callable[..., Ended], tmp_path: Path, typed: tuple[str, ...]
) -> None:
    said = one_sentence(command(*typed), 2)
    assert "which no path can have" in said and said.startswith(("data.path must", "ckpt must"))
    assert not any(_is_in(path.read_text()) for path in tmp_path.rglob("*") if path.is_file())


def test_each_text_that_is_cut_is_cleared_before() -> None:
    READ.values["XFTRAIN_TEST_KEY"] = KEY
    assert not _is_in(sentence(ValueError(f"no {KEY}")))
    assert not _is_in(_short(f"a={KEY}"))
    status, reason = outcome(ValueError(f"no {KEY}"))
    row = shown_row({"status": status, "reason": reason, "ms": 1.0})
    assert row["reason"] == "ValueError: no ${oc.env:XFTRAIN_TEST_KEY}"
    assert len(shown_row({"status": status, "reason": "x" * 9999})["reason"]) == 500

"""Passwords in URLs are in no message and no name, however long they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import Ended
from xftrain.utils.redaction import hidden_in_message
from xftrain.utils.url_passwords import without_passwords


@pytest.mark.parametrize("length", [1, 299, 300, 301, 5_000, 200_000])
def test_a_password_of_any_length_is_hidden(length: int) -> None:
    password = "A" * length
    said = hidden_in_message(f"no route to https://user:{password}@host:1/x, at 12:30 of a@b")
    assert said == "no route to https://***@host:1/x, at 12:30 of a@b"


@pytest.mark.parametrize("text", ["http://host/x", "a@b http://host", "://@host", "see ://"])
def test_other_text_stays(text: str) -> None:
    assert without_passwords(text) == text


def test_several_urls_of_one_word_are_hidden() -> None:
    assert "secret" not in without_passwords("['http://a:secret@h','http://b:secret@h']")


@pytest.mark.parametrize("part", ["://", "://a@", "://a ", "@"])
def test_the_time_is_linear(part: str) -> None:
    began = time.monotonic()
    without_passwords(part * 200_000)
    assert time.monotonic() - began < 3


def test_no_name_of_a_folder_has_it(command: Callable[..., Ended], tmp_path: Path) -> None:
    typed = "tags=['https://me:Passw0rd@127.0.0.1:1/x']"
    ended = command(typed, "ckpt=nowhere.ckpt")
    assert ended.code == 2 and list(tmp_path.glob("outputs/*/*"))
    assert not [path for path in tmp_path.rglob("*Passw0rd*")]

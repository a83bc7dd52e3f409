"""With `python -O`, what cannot be read is refused by a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("override", ["+schedule={name: constant}", "seq=choice(8,16)"])
def test_what_needs_assertions_is_refused_by_a_sentence(override: str) -> None:
    words = [sys.executable, "-O", "-m", "xftrain", "--cfg", "job", override]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"xftrain: {override} cannot be read with python -O, as Hydra needs assertions to read "
        "mappings and functions: run without -O.\n"
    )

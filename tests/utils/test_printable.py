"""Text of a stranger cannot move the cursor, change the title or add a line of its own."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from xftrain.utils.printable import one_line, printable


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    for made, kept in ((printable(text), "\n\t"), (one_line(text), "")):
        assert all(
            c in kept
            or unicodedata.category(c)[0] != "C"
            or c.isprintable()
            or unicodedata.category(c) in ("Cn", "Co")
            for c in made
        )
        made.encode()  # can be written


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"])))
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == one_line(text) == text


def test_an_escape_sequence_is_seen_and_not_obeyed() -> None:
    assert (
        one_line("\x1b]0;title\x07\nnext \u202egnp.exe") == r"\x1b]0;title\x07\nnext \u202egnp.exe"
    )

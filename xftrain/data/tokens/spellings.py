"""The bytes that each token of a tokenizer.json stands for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from xftrain.data.tokens.tokenizer import byte_of_character
from xftrain.data.tokens.tokenizer_json import added_tokens, byte_tokens, components


def spelled_tokens(
    content: Mapping[str, Any], texts: Mapping[int, str], special: Collection[int], size: int
) -> list[bytes]:
    """The bytes of each id below `size`; none for special tokens and for unused ids.

    They are exact for a byte-level tokenizer and for one with the tokens of all bytes, whose
    leading character of a word stands for a blank. For others, such as WordPiece, they are near.
    """
    added = {token["id"] for token in added_tokens(content)}
    spelling = _spelling(content)
    spellings = [b""] * size
    for token, text in texts.items():
        if token not in special:
            spellings[token] = text.encode() if token in added else spelling(text)
    return spellings


def _spelling(content: Mapping[str, Any]) -> Callable[[str], bytes]:
    model, parts = content["model"], list(components(content))
    if any(part.get("type") == "ByteLevel" for part in parts):
        byte_of = byte_of_character()
        return lambda text: b"".join(
            bytes([byte_of[c]]) if c in byte_of else c.encode() for c in text
        )
    blanks = {part["replacement"] for part in parts if part.get("type") == "Metaspace"}
    blanks |= {
        part["content"]
        for part in parts
        if part.get("type") == "Replace" and part.get("pattern") == {"String": " "}
    }
    if blanks:
        names = byte_tokens() if model.get("byte_fallback") else set()
        return lambda text: (
            bytes([int(text[3:5], 16)]) if text in names else _with_blanks(text, blanks).encode()
        )
    inner = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    if suffix:
        return lambda text: text.replace(suffix, " ").encode()
    if inner:
        return lambda text: (
            text.removeprefix(inner) if text.startswith(inner) else f" {text}"
        ).encode()
    return str.encode


def _with_blanks(text: str, blanks: Collection[str]) -> str:
    for mark in blanks:
        text = text.replace(mark, " ")
    return text

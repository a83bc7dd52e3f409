"""Checks a tokenizer.json, and changes it so that the text of a document stays text.

The file may come from anyone. `tokenizers` receives it only after its extent, its components and
its token ids have been checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MODELS = ("BPE", "Unigram", "WordPiece")
# Commas and brackets of the JSON outside strings. Each precedes a value that may take 30 times its
# size in memory. Gemma 3 has 7 for each of its 262,144 tokens.
_PARTS_OF_TOKEN, _OTHER_PARTS, MAX_PARTS = 16, 100_000, 8_000_000
_MAX_TOKEN_CHARACTERS = 4096
_MAX_COMPONENTS = 100  # of normalizer, pre-tokenizer and decoder together
_MAX_GROWTH = 1 << 16  # factor by which all normalizers together may lengthen a text
_STRING = re.compile('"[^"]*"')


def parse_tokenizer(text: str, vocab_size: int | None = None) -> dict[str, Any]:
    """The content of a tokenizer.json whose extent and parts are plausible.

    Args:
        text: content of the file.
        vocab_size: number of tokens, if it is known; it limits the number of values.

    Raises:
        ValueError: the file is damaged, or is no tokenizer of a supported kind.
    """
    limit = MAX_PARTS
    if vocab_size is not None:
        limit = min(limit, _OTHER_PARTS + _PARTS_OF_TOKEN * vocab_size)
    outside = _STRING.sub("", text.replace("\\\\", "").replace('\\"', ""))  # without all strings
    if sum(map(outside.count, ",[{")) > limit:
        raise ValueError("it has more values than a vocabulary has tokens and merges")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError("it has no model with a vocabulary, so it is no file of `tokenizers`")
    kind = model.setdefault("type", _guessed_type(model))  # files of old versions have none
    if kind not in _MODELS:
        raise ValueError(f"its model is {kind!r:.40}, and only {', '.join(_MODELS)} are supported")
    _check_components(content)
    return content


def _guessed_type(model: dict[str, Any]) -> str:
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model["vocab"], list) else "WordPiece"


def components(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All normalizers, pre-tokenizers and decoders, also those in a sequence."""
    todo = [content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    while todo:
        part = todo.pop(0)
        if not isinstance(part, dict):
            continue
        yield part
        for key in ("normalizers", "pretokenizers", "decoders"):
            todo += part[key] if isinstance(part.get(key), list) else []


def _check_components(content: dict[str, Any]) -> None:
    growth = 1
    for number, part in enumerate(components(content)):
        for key in ("content", "prepend"):
            if isinstance(value := part.get(key), str):
                growth *= 1 + len(value)
        if number >= _MAX_COMPONENTS or growth > _MAX_GROWTH:
            raise ValueError("it changes the text in more steps than any known tokenizer")


def token_ids(content: dict[str, Any]) -> dict[int, str]:
    """The text of each token by its id, in the order of the ids, which may have gaps.

    Raises:
        ValueError: an id or a text is no plausible one, or occurs twice.
    """
    vocab = content["model"]["vocab"]
    if isinstance(vocab, dict):
        pairs = [(token, text) for text, token in vocab.items()]
    else:
        pairs = [(token, entry[0]) for token, entry in enumerate(vocab)]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a token id occurs twice")
    for added in added_tokens(content):
        token, text = added["id"], added["content"]
        if found.setdefault(token, text) != text:
            raise ValueError("an added token has the id of another token")
    limit = 2 * len(found) + 65_536
    for token, text in found.items():
        if type(token) is not int or not 0 <= token < limit:
            raise ValueError(f"{token!r:.40} is no plausible token id")
        if not isinstance(text, str) or len(text) > _MAX_TOKEN_CHARACTERS:
            raise ValueError(f"a token is longer than {_MAX_TOKEN_CHARACTERS} characters")
    if not found or len(set(found.values())) != len(found):
        raise ValueError("a token occurs twice, or there is none")
    return dict(sorted(found.items()))


def added_tokens(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens that were added to the vocabulary of the model."""
    return content.get("added_tokens") or []


@dataclass(frozen=True)
class PlainTokenizer:
    """A tokenizer.json that encodes nothing but text.

    Attributes:
        content: the changed content; it adds no tokens and no blank at the beginning of a text.
        special_ids: ids of the tokens that no text can give.
        prefix: blank at the beginning of a document; empty for none, and for a Metaspace, which
            makes it itself.
        skips_prefix: whether a document that begins with a blank gets no other.
    """

    content: dict[str, Any]
    special_ids: frozenset[int]
    prefix: str
    skips_prefix: bool


def plain_tokenizer(content: dict[str, Any], separator: int) -> PlainTokenizer:
    """Changes a tokenizer so that no text gives a special token, and none is cut or padded.

    The special tokens, the separator and the token for unknown text get names that no text has, as
    a Unigram model matches all its tokens, and merges may lead to any of them. Other added tokens
    stay, such as GPT-NeoX's sequences of blanks, but take no blanks from the text beside them.

    Args:
        content: content of the file, which stays as it is.
        separator: id of the document separator.
    """
    texts = token_ids(content)
    model = content["model"]
    unknown = model.get("unk_token")
    special = {
        token for added in added_tokens(content) for token in [added["id"]] if added.get("special")
    }
    special |= {token for token, text in texts.items() if token == separator or text == unknown}
    salt = hashlib.sha256(repr((separator, sorted(special), len(texts))).encode()).hexdigest()
    renamed = {texts[token]: f"\0\uffff{salt}{token}" for token in special if token in texts}
    plain = {**content, "truncation": None, "padding": None, "post_processor": None}
    plain["added_tokens"] = [
        {
            **added,
            "content": renamed.get(added["content"], added["content"]),
            "special": added["id"] in special,
            **({"normalized": False} if added["id"] in special else {}),
            "lstrip": False,
            "rstrip": False,
        }
        for added in added_tokens(content)
    ]
    plain["model"] = {**model, "vocab": _renamed_vocab(model["vocab"], renamed), **_fixed(model)}
    if unknown in renamed:
        plain["model"]["unk_token"] = renamed[unknown]
    if "merges" in model:
        plain["model"]["merges"] = _sound_merges(model, renamed)
    return _without_prefix(plain, special)


def _fixed(model: dict[str, Any]) -> dict[str, Any]:
    return {"dropout": None} if model.get("dropout") else {}  # otherwise tokens are random


def _renamed_vocab(vocab: Any, renamed: dict[str, str]) -> Any:
    if isinstance(vocab, dict):
        return {renamed.get(text, text): token for text, token in vocab.items()}
    return [[renamed.get(text, text), score] for text, score in vocab]


def _sound_merges(model: dict[str, Any], renamed: dict[str, str]) -> list[Any]:
    """The merges without those that make a special token or the token of a byte."""
    prefix = model.get("continuing_subword_prefix") or ""
    hidden = renamed.keys() | (byte_tokens() if model.get("byte_fallback") else set())
    merges = []
    for merge in model["merges"]:
        # files of old versions have strings
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        if not hidden & {a, b, a + b.removeprefix(prefix)}:
            merges.append((a, b))
    return merges


def _without_prefix(content: dict[str, Any], special: set[int]) -> PlainTokenizer:
    """Takes the blank at the beginning from the normalizer or from a byte-level pre-tokenizer."""
    normalizer, words = content.get("normalizer"), content.get("pre_tokenizer")
    steps = [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer["normalizers"]
    prefix, skips = "", False
    if steps and isinstance(steps[0], dict) and steps[0].get("type") == "Prepend":
        prefix = steps[0]["prepend"].replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        rest = steps[1:]
        content["normalizer"] = {"type": "Sequence", "normalizers": rest} if rest else None
    if isinstance(words, dict) and words.get("type") == "ByteLevel" and words["add_prefix_space"]:
        content["pre_tokenizer"] = {**words, "add_prefix_space": False}
        prefix, skips = " ", True
    return PlainTokenizer(content, frozenset(special), prefix, skips)


def with_prefix_scheme(content: dict[str, Any], scheme: str) -> dict[str, Any] | None:
    """The tokenizer with another scheme of its Metaspace; None if that adds no blank, or is none.

    A Metaspace in a sequence stays, as it gets the words of the step before it one by one.

    Args:
        content: the tokenizer.
        scheme: `first`, a blank at the beginning of a text, or `never`.
    """
    words = content.get("pre_tokenizer")
    if not isinstance(words, dict) or words.get("type") != "Metaspace":
        return None
    # files of old versions have add_prefix_space in place of a scheme
    default = "always" if words.get("add_prefix_space", True) else "never"
    if words.get("prepend_scheme", default) == "never":
        return None
    changed = {**words, "prepend_scheme": scheme, "split": words.get("split", True)}
    changed.pop("add_prefix_space", None)
    return {**content, "pre_tokenizer": changed}


def byte_tokens() -> set[str]:
    """The names of the tokens for bytes that have no other token."""
    return {f"<0x{byte:02X}>" for byte in range(256)}

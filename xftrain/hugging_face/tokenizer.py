"""Writes a vocabulary as the tokenizer files of `transformers`, which encode and decode as it does.

Text that spells a special token stays text here, so the files say so too (`split_special_tokens`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer import SEPARATOR_TEXT, Bpe, Bytes, byte_of_character
from xftrain.data.tokens.tokenizer_json import (
    added_tokens,
    parse_tokenizer,
    plain_tokenizer,
    token_ids,
    with_prefix_scheme,
)
from xftrain.data.tokens.vocabulary import Integers
from xftrain.interfaces import Vocabulary

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # of sentencepiece
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, str]:
    """The texts of the files by their names; empty for a vocabulary of the user's own."""
    content: dict[str, Any]
    end: str | None = None
    if type(vocabulary) is Bytes:
        content, end = _bytes(vocabulary)
    elif type(vocabulary) is Bpe:
        content, end = _bpe(vocabulary)
    elif type(vocabulary) is Pretrained:
        content, end = _pretrained(vocabulary)
    elif type(vocabulary) is Integers:
        content = _integers(vocabulary)
    else:
        return {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        **({} if end is None else {"bos_token": end, "eos_token": end, "pad_token": end}),
    }
    return {
        TOKENIZER: json.dumps(content, ensure_ascii=False) + "\n",
        TOKENIZER_CONFIG: json.dumps(config, indent=2) + "\n",
    }


def end_of_text(vocabulary: Vocabulary) -> int | None:
    """The id of the token that separates documents; None if there is none."""
    separator = getattr(vocabulary, "separator", None)
    return separator if type(separator) is int else None


def _tokenizer(
    model: dict[str, Any], words: dict[str, Any], decoder: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": words,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _special(token: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": True}


def _name(taken: Iterable[str]) -> str:
    """A name for the document separator that no other token has."""
    names, name = set(taken), SEPARATOR_TEXT
    while name in names:
        name = f"<{name}>"
    return name


def _bytes(vocabulary: Bytes) -> tuple[dict[str, Any], str]:
    vocab = dict(sorted(byte_of_character().items(), key=lambda pair: pair[1]))
    words = {**_BYTE_LEVEL, "use_regex": False}
    model: dict[str, Any] = {"type": "BPE", "unk_token": None, "vocab": vocab, "merges": []}
    content = _tokenizer(model, words, {**_BYTE_LEVEL, "use_regex": True})
    end = _name(vocab)
    return {**content, "added_tokens": [_special(vocabulary.separator, end)]}, end


def _bpe(vocabulary: Bpe) -> tuple[dict[str, Any], str]:
    content: dict[str, Any] = json.loads(vocabulary.to_json())
    end = _name(content["model"]["vocab"])
    return {**content, "added_tokens": [_special(vocabulary.separator, end)]}, end


def _integers(vocabulary: Integers) -> dict[str, Any]:
    """Numbers with blanks between them; leading zeros have no meaning."""
    vocab = {str(number): number for number in range(vocabulary.vocab_size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}  # no token: an error
    content = _tokenizer(model, {"type": "WhitespaceSplit"}, None)
    zeros = {"type": "Replace", "pattern": {"Regex": r"(?<!\d)0+(?=\d)"}, "content": ""}
    return {**content, "normalizer": zeros}


def _pretrained(vocabulary: Pretrained) -> tuple[dict[str, Any], str]:
    """The tokenizer as it encodes here: without templates, and special tokens never from text."""
    original = parse_tokenizer(vocabulary.to_json())
    plain = plain_tokenizer(original, vocabulary.separator)
    content = with_prefix_scheme(plain.content, "first") or dict(plain.content)
    if plain.prefix:  # here it is put before a document, there it is a step of the tokenizer
        part = "pre_tokenizer" if plain.skips_prefix else "normalizer"
        content[part] = original[part]
    if original["model"].get("byte_fallback"):
        content["pre_tokenizer"] = _cutting_byte_tokens(content.get("pre_tokenizer"))
    texts = token_ids(original)
    hidden = token_ids(plain.content)  # the names that no text spells
    added = {one["id"] for one in added_tokens(original)}
    restored = {
        hidden[token]: texts[token]
        for token in plain.special_ids
        if token in texts and _cannot_be_spelled(original, texts[token], token in added)
    }
    shown = {
        hidden[token]: texts[token]
        for token in plain.special_ids
        if token in texts and hidden[token] not in restored
    }
    content = _renamed(content, restored)
    if content.get("decoder") is None and _BLANK in json.dumps(original, ensure_ascii=False):
        begins = bool(plain.prefix) or with_prefix_scheme(plain.content, "first") is not None
        content["decoder"] = _blanks_decoder(begins)
    if shown:
        content["decoder"] = _with_names(content.get("decoder"), shown)
    end = hidden.get(vocabulary.separator, "")
    end = restored.get(end, end) or _name(texts.values())
    known = {one["id"] for one in content["added_tokens"]}
    if vocabulary.separator not in known:
        content["added_tokens"] = [*content["added_tokens"], _special(vocabulary.separator, end)]
        content["added_tokens"].sort(key=lambda one: one["id"])
    return content, end


def _cutting_byte_tokens(words: dict[str, Any] | None) -> dict[str, Any]:
    """A pre-tokenizer that cuts text which spells the token of a byte, as `Pretrained` does."""
    pattern = {"Regex": "(?<=<0x)(?=[0-9A-F]{2}>)"}
    cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [*([words] if words else []), cut]}


def _blanks_decoder(begins_with_blank: bool) -> dict[str, Any]:
    """The decoder of a sentencepiece model whose file has none."""
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {"type": "Sequence", "decoders": [*steps, *([strip] if begins_with_blank else [])]}


def _cannot_be_spelled(content: dict[str, Any], text: str, is_added: bool) -> bool:
    """Whether the model never gives a token of this name, once no merge leads to it."""
    model = content["model"]
    if is_added and text not in model["vocab"] and isinstance(model["vocab"], dict):
        return True
    return model["type"] == "BPE" and not model.get("ignore_merges") and len(text) > 1


def _renamed(content: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    model = content["model"]
    vocab, unknown = model["vocab"], model.get("unk_token")
    if isinstance(vocab, dict):
        vocab = {names.get(text, text): token for text, token in vocab.items()}
    model = {**model, "vocab": vocab}
    if unknown is not None:
        model["unk_token"] = names.get(unknown, unknown)
    added = [
        {**one, "content": names.get(one["content"], one["content"])}
        for one in content["added_tokens"]
    ]
    return {**content, "model": model, "added_tokens": added}


def _with_names(decoder: dict[str, Any] | None, shown: dict[str, str]) -> dict[str, Any]:
    """A decoder that shows special tokens by their own names."""
    steps = [
        {"type": "Replace", "pattern": {"String": hidden}, "content": text}
        for hidden, text in shown.items()
    ]
    return {"type": "Sequence", "decoders": [*steps, *([decoder] if decoder else [])]}

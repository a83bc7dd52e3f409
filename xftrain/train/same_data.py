"""Checks by content that a resumed run trains on the data of its checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from xftrain.config.content_options import content_options
from xftrain.data.tokens.tokenizer import MAX_FILE_BYTES
from xftrain.data.tokens.vocabulary import TOKENIZER_FILE, describe, tokenizer_json
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import DataSource
from xftrain.model.prompts import default_prompt
from xftrain.train.distributed import all_gather_values
from xftrain.train.same_run import allows, flat
from xftrain.utils.files import read_plain, replace_text
from xftrain.utils.printable import one_line
from xftrain.version import code_version

log = logging.getLogger(__name__)


def check_data(data: DataSource) -> None:
    """Checks that data has a valid identity and equal content on all ranks.

    Raises:
        ConfigError: a user's class breaks the protocol, or the ranks, which may be on several
            machines, have different content; raised on every rank.
    """
    name, vocabulary = type(data).__name__, getattr(data, "vocabulary", None)
    if vocabulary is not None:
        wanted = ("kind", "vocab_size", "encode", "decode", "digest")
        if missing := [part for part in wanted if not hasattr(vocabulary, part)]:
            raise ConfigError(
                f"data: the vocabulary of {name} has no {missing[0]}, which every vocabulary needs "
                "(docs/extending.md)."
            )
        if vocabulary.vocab_size != data.vocab_size:
            raise ConfigError(
                f"data: {name} has vocab_size {data.vocab_size}, and its vocabulary has "
                f"{vocabulary.vocab_size}: make them the same."
            )
    sources = getattr(data, "val_sources", ())
    is_named = isinstance(sources, tuple) and all(isinstance(source, str) for source in sources)
    if not is_named or (sources and len(sources) != data.num_val_batches):
        raise ConfigError(
            f"data: val_sources of {name} must be a tuple with the name of the source of each of "
            f"its {data.num_val_batches} validation batches."
        )
    digests = all_gather_values(digest_of(data) or "")
    for number, other in enumerate(digests):
        if other != digests[0]:
            raise ConfigError(
                f"data must be the same on all ranks, and rank {number} has other content than "
                f"rank 0 (digests {other[:12]} and {digests[0][:12]}): give all ranks the same "
                "files, and run again once nothing writes to them."
            )


def digest_of(data: DataSource) -> str | None:
    """The digest of the content of data; None if a user's class has none.

    Raises:
        ConfigError: a user's class breaks the protocol.
    """
    digest = getattr(data, "digest", None)
    if digest is None:
        return None
    content_digest = digest() if callable(digest) else None
    if not isinstance(content_digest, str):
        raise ConfigError(
            f"data: digest() of {type(data).__name__} must be a method that returns a string "
            "(docs/extending.md)."
        )
    return content_digest


class DataIdentity:
    """Identifies the data and code of a run by content, and compares a checkpoint with it.

    Args:
        data: the data source; a user's class may lack a vocabulary and a digest.
    """

    def __init__(self, data: DataSource) -> None:
        self._data = data

    @cached_property
    def saved(self) -> dict[str, Any]:
        """The plain values to save in every checkpoint."""
        vocabulary, digest = getattr(self._data, "vocabulary", None), digest_of(self._data)
        if digest is None:
            log.info(
                "data: %s has no digest(), so a resumed run cannot tell whether its data has "
                "changed",
                type(self._data).__name__,
            )
        values: dict[str, Any] = {"data_digest": digest, "code_version": code_version()}
        if vocabulary is not None:
            values["vocabulary"] = describe(vocabulary)
            values["prompt"] = default_prompt(self._data)[0].tolist()  # default prompt of a sample
        return values

    def keep_vocabulary(self, run_dir: Path) -> None:
        """Writes `tokenizer.json` beside the checkpoints, if the vocabulary needs a file.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        vocabulary = getattr(self._data, "vocabulary", None)
        content = None if vocabulary is None else tokenizer_json(vocabulary)
        path = run_dir / "checkpoints" / TOKENIZER_FILE
        if content is None or _has_content(path, content):
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, content)
        except OSError as error:
            raise RunError(
                f"the vocabulary {path} could not be written ({error}): free space on its disk or "
                "choose another hydra.run.dir; the checkpoints are untouched."
            ) from error

    def refuse_other_vocabulary(self, held: Mapping[str, Any]) -> None:
        """Compares the vocabularies, since weights depend on the vocabulary they were trained with.

        Args:
            held: the entry `xftrain` of the checkpoint.

        Raises:
            ConfigError: the vocabularies differ; no key can allow that.
        """
        there, here = (vocabulary_in(values) for values in (held, self.saved))
        if there and here and there != here:
            raise ConfigError(
                f"ckpt was trained with another vocabulary, {shown_vocabulary(there)}, and data "
                f"has {shown_vocabulary(here)} now: the same token would mean something else, so "
                "this cannot be allowed; set data as in its run's config.yaml, and restore the "
                "files of data.tokenizer, or those below data.path, if they have changed."
            )

    def refuse_other_content(self, held: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        """Compares the content of data; the configurations must have been compared before.

        Args:
            held: the entry `xftrain` of the checkpoint.
            current: the configuration of the resumed run, whose `ckpt_allow` may name data.path.

        Raises:
            ConfigError: the content differs, and `ckpt_allow` does not permit it.
        """
        if (code := _saved_text(held, "code_version")) != self.saved["code_version"]:
            log.info("ckpt: saved by xftrain %s, resumed by %s", code, self.saved["code_version"])
        there, here = _saved_text(held, "data_digest"), self.saved["data_digest"]
        if there is None or here is None:
            log.info(
                "ckpt: without a digest, it is unknown whether the content of data has changed"
            )
        elif there != here and _is_allowed(held["config"], current):
            log.info("ckpt: data has other content, as ckpt_allow permits")
        elif there != here:
            path = current["data"].get("path")
            where = "the content of data" if path is None else f"the text of data.path={path}"
            raise ConfigError(
                f"ckpt was trained on other data: {where} has changed since (digest {there[:12]} "
                f"-> {here[:12]}), while its vocabulary is the same; restore it, or allow other "
                f"content with ckpt_allow=[{'data' if path is None else 'data.path'}]."
            )

    def has_content_of(self, held: Mapping[str, Any]) -> bool:
        """Whether the content is known to equal that of the checkpoint, at any path."""
        there = _saved_text(held, "data_digest")
        return there is not None and there == self.saved["data_digest"]


def _has_content(path: Path, content: str) -> bool:
    try:
        return read_plain(path, MAX_FILE_BYTES) == content.encode()
    except OSError:
        return False


def _is_allowed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether `ckpt_allow` permits other content, by data.path or by a changed option."""
    allowed = current["ckpt_allow"]
    if allows("data.path", allowed):
        return True
    before, after = (
        content_options(flat({"data": config.get("data", {})})) for config in (saved, current)
    )
    return any(
        before.get(key) != after.get(key) and allows(key, allowed)
        for key in before.keys() | after.keys()
    )


def vocabulary_in(held: Mapping[str, Any]) -> dict[str, Any] | None:
    """What identifies the vocabulary in a checkpoint's own entry; None if there is none."""
    vocabulary = held.get("vocabulary")
    if not isinstance(vocabulary, Mapping):
        return None
    return {key: vocabulary.get(key) for key in ("kind", "vocab_size", "digest")}


def shown_vocabulary(vocabulary: Mapping[str, Any]) -> str:
    """The kind, the size and the digest of a vocabulary, for messages."""
    kind, size, digest = (
        one_line(str(value)[:20] if isinstance(value, str | int) else type(value).__name__)
        for value in vocabulary.values()
    )
    return f"{kind} of {size} tokens ({digest[:12]})"


def _saved_text(held: Mapping[str, Any], key: str) -> str | None:
    value = held.get(key)
    return one_line(value)[:100] if isinstance(value, str) else None

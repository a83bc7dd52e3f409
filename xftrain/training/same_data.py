"""Whether a resumed run trains on what its checkpoint was trained on, by content."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xftrain.data.tokenizer import MAX_FILE_BYTES
from xftrain.data.vocabulary import FILE, describe, file_of
from xftrain.errors import ConfigError, RunError
from xftrain.files import read_plain, replace_text
from xftrain.generate import first_prompt
from xftrain.interfaces import DataSource
from xftrain.printable import one_line
from xftrain.training.distributed import from_all_ranks
from xftrain.training.same_run import allows, flat
from xftrain.version import code_version

log = logging.getLogger(__name__)

# Keys of `data` that change how batches are cut from the content, not the content.
_SAME_CONTENT = ("batch_size", "cache_dir", "num_val_batches", "packing", "stop_at_accuracy")


def identity_of(data: DataSource) -> dict[str, Any]:
    """What a checkpoint holds of the data and the code, as plain values.

    A data source of the user's own may have no vocabulary and no digest, which is said.
    """
    vocabulary, digest = getattr(data, "vocabulary", None), getattr(data, "digest", None)
    if digest is None:
        log.info(
            "data: %s has no digest(), so a resumed run cannot tell whether its data has changed",
            type(data).__name__,
        )
    held: dict[str, Any] = {
        "data_digest": None if digest is None else str(digest()),
        "code_version": code_version(),
    }
    if vocabulary is not None:
        held["vocabulary"] = describe(vocabulary)
        held["prompt"] = first_prompt(data)[0].tolist()  # what is sampled after without another
    return held


def refuse_other_ranks_data(data: DataSource) -> None:
    """Compares the content of the data on all ranks, which may be on several machines.

    Raises:
        ConfigError: on every rank, where they differ.
    """
    digest = getattr(data, "digest", None)
    digests = from_all_ranks("" if digest is None else str(digest()))
    for number, other in enumerate(digests):
        if other != digests[0]:
            raise ConfigError(
                f"data must be the same on all ranks, and rank {number} has other content than "
                f"rank 0 (digests {other[:12]} and {digests[0][:12]}): give all ranks the same "
                "files, and run again when they are at rest."
            )


def keep_vocabulary(data: DataSource, folder: Path) -> None:
    """Writes `tokenizer.json` where a vocabulary needs a file, and where it is not there yet.

    Args:
        data: whose vocabulary it is.
        folder: of the checkpoints.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    vocabulary = getattr(data, "vocabulary", None)
    content = None if vocabulary is None else file_of(vocabulary)
    if content is None or _holds(folder / FILE, content):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / FILE, content)
    except OSError as error:
        raise RunError(
            f"the vocabulary {folder / FILE} could not be written ({error}): free space on its "
            "disk or choose another hydra.run.dir; the checkpoints are untouched."
        ) from error


def _holds(path: Path, content: str) -> bool:
    try:
        return read_plain(path, MAX_FILE_BYTES) == content.encode()
    except OSError:
        return False


def refuse_other_vocabulary(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compares the vocabularies: weights that know one cannot be trained with another.

    Args:
        saved: what the checkpoint holds.
        ours: `identity_of` the data.

    Raises:
        ConfigError: they differ; no key allows that.
    """
    there, here = (_vocabulary(one) for one in (saved, ours))
    if there and here and there != here:
        raise ConfigError(
            f"ckpt was trained with another vocabulary, {_said(there)}, and data has {_said(here)} "
            "now: the same token would mean something else, so this cannot be allowed; set data as "
            "in its run's config.yaml, and restore the files below data.path if they have changed."
        )


def refuse_other_content(
    saved: Mapping[str, Any], ours: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    """Compares the content of the data, once the configurations are known to be the same run's.

    Args:
        saved: what the checkpoint holds.
        ours: `identity_of` the data.
        current: the configuration of the resumed run, whose `ckpt_allow` may name data.path.

    Raises:
        ConfigError: it differs, and is not allowed to.
    """
    if (code := _text(saved, "code_version")) != ours["code_version"]:
        log.info("ckpt: saved by xftrain %s, resumed by %s", code, ours["code_version"])
    there, here = _text(saved, "data_digest"), ours["data_digest"]
    if there is None or here is None:
        log.info("ckpt: whether the content of data has changed is not known, without a digest")
        return
    if there == here:
        return
    if _is_allowed(saved["config"], current):
        log.info("ckpt: data has other content, as ckpt_allow permits")
        return
    path = current["data"].get("path")
    where = "the content of data" if path is None else f"the text of data.path={path}"
    raise ConfigError(
        f"ckpt was trained on other data: {where} has changed since (digest {there[:12]} -> "
        f"{here[:12]}), while its vocabulary is the same; restore it, or allow other content with "
        f"ckpt_allow=[{'data' if path is None else 'data.path'}]."
    )


def same_content(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the content is known to be the same, wherever it lies."""
    there = _text(saved, "data_digest")
    return there is not None and there == ours["data_digest"]


def _is_allowed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """By name, or because an option that was allowed by name gives other content."""
    allowed = current["ckpt_allow"]
    if allows("data.path", allowed):
        return True
    before, after = (flat({"data": config.get("data", {})}) for config in (saved, current))
    return any(
        before.get(key) != after.get(key) and allows(key, allowed)
        for key in before.keys() | after.keys()
        if key.removeprefix("data.") not in _SAME_CONTENT
    )


def _vocabulary(held: Mapping[str, Any]) -> dict[str, Any] | None:
    found = held.get("vocabulary")
    if not isinstance(found, Mapping):
        return None
    return {key: found.get(key) for key in ("kind", "vocab_size", "digest")}


def _said(vocabulary: Mapping[str, Any]) -> str:
    kind, size, digest = (one_line(str(value))[:20] for value in vocabulary.values())
    return f"{kind} of {size} tokens ({digest[:12]})"


def _text(held: Mapping[str, Any], key: str) -> str | None:
    value = held.get(key)
    return one_line(value)[:100] if isinstance(value, str) else None

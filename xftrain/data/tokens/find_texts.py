"""Finds the texts of a corpus: lists its files, and skips what is no text and copies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from xftrain.data.corpus.listing import Listing
from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens.content import (
    MAX_RECORDED_FILES,
    DigestRecord,
    TextFile,
    distinct_texts,
)
from xftrain.errors import ConfigError
from xftrain.utils.files import expand_home


def absolute_paths(key: str, path: str | list[str]) -> list[Path]:
    """The paths that an option names.

    Args:
        key: the option, for messages.
        path: its value.

    Raises:
        ConfigError: it names none.
    """
    named = [path] if isinstance(path, str) else path
    if not named or not all(named):
        raise ConfigError(
            f"{key} must name a file or folder of text, got {path!r}; for this folder write ."
        )
    return [Path(os.path.abspath(expand_home(key, one))) for one in named]


def find_texts(
    roots: list[Path], val_roots: list[Path], cache: Path, *, follow_links: bool
) -> tuple[list[TextFile], list[TextFile], Skipped]:
    """The files of `data.path` that are text or records, those of `data.val_path`, and the rest.

    Args:
        roots: files, folders and globs of `data.path`.
        val_roots: those of `data.val_path`.
        cache: the folder of token files.
        follow_links: whether links that lead out of a folder are followed.

    Raises:
        ConfigError: a path is none, or has no text.
        RunError: a file cannot be read, or changes meanwhile.
    """
    listing = Listing(leave_out=cache, follow_links=follow_links)
    skipped = listing.skipped
    # first, so that a file of both is held out, and a copy of its text is not trained on
    val_files = listing.files_of(val_roots, "data.val_path")
    files = listing.files_of(roots)
    most_recorded = 2 * (len(files) + len(val_files)) + MAX_RECORDED_FILES
    record = DigestRecord(_record_path(cache, roots + val_roots), most_recorded)
    held_out = distinct_texts(val_files, record, skipped)
    texts = distinct_texts(files, record, skipped, {text.sha256 for text in held_out})
    record.save()
    for key, named, found in (
        ("data.path", roots, texts),
        ("data.val_path", val_roots, held_out or not val_roots),
    ):
        if not found:
            shown = str(named[0]) if len(named) == 1 else [str(root) for root in named]
            raise ConfigError(
                f"{key} must hold text (valid UTF-8 without NUL bytes), got "
                f"{shown!r} with none (skipped {skipped}); give a file or folder of text"
                + (", or set data.follow_links=true." if skipped["outside"] else ".")
            )
    return texts, held_out, skipped


def _record_path(cache: Path, roots: list[Path]) -> Path:
    """The path of the recorded digests of a corpus, which differs for each user."""
    named = (os.geteuid(), *map(os.fsencode, roots))
    name = hashlib.blake2b(repr(named).encode(), digest_size=16)
    return cache / f".{name.hexdigest()}.digests"

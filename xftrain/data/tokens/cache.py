"""Token files of a corpus on disk, which are written once and memory-mapped.

The folder of a corpus is named by a hash of everything that determines its content: the name and
content of each text, and the options. It is made under a temporary name and renamed when complete,
so that a killed preparation never looks complete. It belongs to one user, and only that user can
read it, as the corpus may be private; in a shared cache folder, no user trains on another's files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xftrain.data.corpus.files import changed_error
from xftrain.data.corpus.selection import Conversations
from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens.cache_folder import cache_folder, exclusive_lock, is_own_folder
from xftrain.data.tokens.choice import TokenizerSpec, choose_tokenizer
from xftrain.data.tokens.chunks import SPLITS
from xftrain.data.tokens.corpus import Corpus, corpus_of
from xftrain.data.tokens.files import SEAL, write_meta, write_token_files
from xftrain.data.tokens.find_texts import absolute_paths, find_texts
from xftrain.data.tokens.pool import usable_cpus
from xftrain.data.tokens.stream import (
    Meta,
    TokenStream,
    open_stream,
    read_bigram_counts,
    read_meta,
    read_tokenizer,
)
from xftrain.data.tokens.summary import summary_of
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.errors import ConfigError, RunError
from xftrain.utils.files import sync

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split

log = logging.getLogger(__name__)

_FORMAT = 5  # increase it whenever the same files would give different tokens
_PARALLEL_BYTES = 16 << 20  # of files; fewer are tokenized before processes have started


@dataclass(frozen=True)
class TokenCache:
    """A prepared corpus, open for reading.

    Attributes:
        folder: path of the folder.
        tokenizer: vocabulary of the tokens.
        streams: the tokens of the two splits.
        bigram_counts: byte-bigram counts of the training text.
        summary: text with the numbers of files, skipped files and tokens.
        digest: SHA-256 of the tokens of both splits and of the vocabulary.
        documents: number of documents of each split.
        num_bytes: bytes of text of each split.
        num_duplicates: number of documents that are copies of earlier ones.
        skipped: the skipped files and records by reason.
    """

    folder: Path
    tokenizer: Tokenizer
    streams: dict[Split, TokenStream]
    bigram_counts: npt.NDArray[np.int64]
    summary: str
    digest: str
    documents: dict[Split, int]
    num_bytes: dict[Split, int]
    num_duplicates: int
    skipped: Skipped

    def damaged_error(self) -> RunError:
        """The error for a batch with tokens outside the vocabulary."""
        return RunError(
            f"data.cache_dir: the token files in {str(self.folder)!r} are damaged: a token is "
            "outside the vocabulary; delete that folder, and they are made again."
        )


@dataclass(frozen=True)
class Preparation:
    """A corpus whose files have been found, and whose token files are in `folder` or will be.

    Attributes:
        folder: path of the folder of token files, whose name is a hash of what determines them.
        root: the first path of the corpus.
        corpus: its files.
        spec: the tokenizer.
        skipped: the files that are not read.
        num_workers: number of processes that tokenize, see `find`.
    """

    folder: Path
    root: Path
    corpus: Corpus
    spec: TokenizerSpec
    skipped: Skipped
    num_workers: int | None

    def content_digest(self) -> str:
        """A hash of all that determines the tokens, the same for every user."""
        return _key(self.corpus, self.spec)

    def open_cache(self) -> TokenCache | None:
        """The token files, or None if they are missing or damaged."""
        return _open(self.folder, self.spec, self.corpus, self.skipped)

    def finish(self) -> TokenCache:
        """Opens the token files, and makes them first if needed; see `prepare` for errors."""
        opened = self.open_cache()
        if opened is None:
            cache, key = self.folder.parent, self.folder.name
            with exclusive_lock(cache / f".{key}.lock") as is_alone:
                # another process may have made it meanwhile
                opened = self.open_cache()
                if opened is None:
                    if self.folder.exists():
                        log.warning("data.path: %s is damaged and is made again", self.folder)
                    leftovers = cache.glob(f".{key}-*") if is_alone else ()
                    for leftover in [self.folder, *leftovers]:
                        shutil.rmtree(leftover, ignore_errors=True)
                    _make(self, is_alone=is_alone)
                    opened = self.open_cache()
        if opened is None:
            raise RunError(
                f"data.cache_dir: the token files written to {str(self.folder)!r} cannot be read "
                "back; check that disk or choose another folder."
            )
        log.info("data.path: %s", opened.summary)
        return opened


def prepare(path: str | list[str], **options: Any) -> TokenCache:
    """Opens the token files of a corpus, and makes them first if needed.

    Args:
        path: files, folders and globs.
        options: those of `find`.

    Raises:
        ConfigError: the options contradict each other, or there is no text.
        RunError: a file changed or the disk was full during preparation.
    """
    return find(path, **options).finish()


def find(
    path: str | list[str],
    *,
    val_path: str | list[str] | None = None,
    text_key: str | Conversations = "text",
    tokenizer: str | TokenizerSpec = "bytes",
    vocab_size: int | None = None,
    val_fraction: float = 0.1,
    follow_links: bool = False,
    cache_dir: str | None = None,
    num_workers: int | None = None,
) -> Preparation:
    """Finds the files of a corpus, and computes the digests of those that have changed.

    Args:
        path: files, folders and globs.
        val_path: files, folders and globs that are held out; None holds out a part of `path`.
        text_key: the key of the text in a record, or the keys of its conversation.
        tokenizer: bytes, or a BPE trained on the training files.
        vocab_size: None is 257 for bytes and 8192 for a BPE.
        val_fraction: fraction of the documents held out, or of the bytes of a single text file.
        follow_links: whether links that lead out of the folder are followed.
        cache_dir: None is `xftrain` under `$XDG_CACHE_HOME`, else under `~/.cache`.
        num_workers: number of processes that tokenize a corpus; 0 is this process alone, and None
            is one for each CPU, or none for a small corpus.

    Raises:
        ConfigError: the options contradict each other, or there is no text.
        RunError: a file changed or the disk was full during preparation.
    """
    spec = tokenizer
    if not isinstance(spec, TokenizerSpec):
        spec = choose_tokenizer(spec, vocab_size)
    if not 0 < val_fraction < 1:
        raise ConfigError(
            "data.val_fraction must be above 0 and below 1, because some text is held out and some "
            f"is trained on, got {val_fraction}; 0.1 is the default."
        )
    roots = absolute_paths("data.path", path)
    val_roots = absolute_paths("data.val_path", val_path) if val_path is not None else []
    cache = cache_folder(cache_dir)
    texts, held_out, skipped = find_texts(roots, val_roots, cache, follow_links=follow_links)
    corpus = corpus_of(texts, held_out, text_key, val_fraction, skipped)
    # no user trusts another's token files
    folder = cache / _key(corpus, spec, os.geteuid())
    return Preparation(folder, roots[0], corpus, spec, skipped, num_workers)


def _key(corpus: Corpus, spec: TokenizerSpec, *user: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    fraction = None if corpus.held_out else corpus.val_fraction
    text_key = corpus.text_key if corpus.has_records else None
    digest.update(repr((_FORMAT, *user, *spec.key(), fraction, text_key)).encode())
    for text in corpus.files:
        digest.update(repr((os.fsencode(text.name), text.size, text.sha256)).encode())
    digest.update(repr(len(corpus.held_out)).encode())
    return digest.hexdigest()


def _make(preparation: Preparation, *, is_alone: bool) -> None:
    folder, corpus, spec = preparation.folder, preparation.corpus, preparation.spec
    root, num_workers = preparation.root, preparation.num_workers
    log.info("data.path: preparing %d files of %s", len(corpus.files), root)
    start = time.monotonic()
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(16)}")
    # the name can be predicted, so that a preparation that is killed is resumed; without a lock, a
    # second process would use the same folder
    shards = folder.with_name(f".{folder.name}.shards") if is_alone else temporary / "shards"
    if num_workers is None:
        num_bytes = sum(file.size for file in corpus.files)
        num_workers = usable_cpus() if num_bytes >= _PARALLEL_BYTES else 0
    try:
        temporary.mkdir(mode=0o700)
        if not is_own_folder(shards):
            shards.mkdir(mode=0o700)
        facts = write_token_files(temporary, shards, corpus, spec, num_workers)
        write_meta(temporary, facts, spec)
        if not is_alone:
            shutil.rmtree(shards)
        try:
            temporary.rename(folder)
        except OSError:
            # without locks, another process may have been faster
            if not folder.is_dir():
                raise
        sync(folder.parent)
        shutil.rmtree(shards, ignore_errors=True)
    except ConfigError:
        shutil.rmtree(shards, ignore_errors=True)
        raise
    except RunError:
        # the vocabulary may have been trained on text that has changed; shards name their text
        (shards / SEAL).unlink(missing_ok=True)
        raise
    except UnicodeDecodeError as error:
        shutil.rmtree(shards, ignore_errors=True)
        raise changed_error(root) from error
    except OSError as error:
        shutil.rmtree(shards, ignore_errors=True)  # the disk may be full
        raise RunError(
            f"data.cache_dir: the token files could not be written to {str(folder.parent)!r} "
            f"({error.strerror or error}); make room there or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("data.path: prepared in %.1f s, stored in %s", time.monotonic() - start, folder)


def _open(folder: Path, spec: TokenizerSpec, corpus: Corpus, skipped: Skipped) -> TokenCache | None:
    """The opened token files, or None if they are missing or damaged.

    Raises:
        ConfigError: the folder is a link or belongs to another user.
    """
    if not is_own_folder(folder):
        return None
    try:
        meta = read_meta(folder, corpus.files, spec)
        all_skipped = Skipped()
        all_skipped.add_all(skipped)
        all_skipped.add_all(meta.skipped)
        tokenizer = read_tokenizer(folder, spec, meta)
        return TokenCache(
            folder=folder,
            tokenizer=tokenizer,
            streams={s: open_stream(folder, s, corpus.encoder(tokenizer), meta) for s in SPLITS},
            bigram_counts=read_bigram_counts(folder, meta),
            summary=summary_of(corpus, meta, all_skipped),
            digest=_digest(meta, tokenizer),
            documents={split: meta.splits[split].documents for split in SPLITS},
            num_bytes={split: meta.splits[split].bytes for split in SPLITS},
            num_duplicates=meta.num_duplicates,
            skipped=all_skipped,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.debug("data.path: %s cannot be read: %s", folder, error)
        return None


def _digest(meta: Meta, tokenizer: Tokenizer) -> str:
    checksums = [meta.splits[split].sha256 for split in SPLITS]
    return hashlib.sha256(" ".join([*checksums, tokenizer.digest()]).encode()).hexdigest()

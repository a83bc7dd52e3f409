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
from typing import Any

import numpy as np
import numpy.typing as npt

from xftrain.data.corpus.files import changed_error, list_files, split_documents
from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens.cache_folder import cache_folder, exclusive_lock, is_own_folder
from xftrain.data.tokens.choice import TokenizerSpec, choose_tokenizer
from xftrain.data.tokens.content import (
    MAX_RECORDED_FILES,
    ContentCheck,
    DigestRecord,
    TextFile,
    distinct_texts,
)
from xftrain.data.tokens.files import SPLITS, write_meta, write_token_files
from xftrain.data.tokens.stream import (
    Meta,
    TokenStream,
    open_stream,
    read_bigram_counts,
    read_meta,
    read_tokenizer,
)
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import Split
from xftrain.utils.files import expand_home, sync

log = logging.getLogger(__name__)

_FORMAT = 4  # increase it whenever the same files would give different tokens


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
    """

    folder: Path
    tokenizer: Tokenizer
    streams: dict[Split, TokenStream]
    bigram_counts: npt.NDArray[np.int64]
    summary: str
    digest: str

    def damaged_error(self) -> RunError:
        """The error for a batch with tokens outside the vocabulary."""
        return RunError(
            f"data.cache_dir: the token files in {str(self.folder)!r} are damaged: a token is "
            "outside the vocabulary; delete that folder, and they are made again."
        )


def prepare(
    path: str,
    *,
    tokenizer: str | TokenizerSpec = "bytes",
    vocab_size: int | None = None,
    val_fraction: float = 0.1,
    follow_links: bool = False,
    cache_dir: str | None = None,
) -> TokenCache:
    """Opens the token files of a corpus, and makes them first if needed.

    Args:
        path: a file or a folder.
        tokenizer: bytes, or a BPE trained on the training files.
        vocab_size: None is 257 for bytes and 8192 for a BPE.
        val_fraction: fraction of the files held out, or of the bytes of a single file.
        follow_links: whether links that lead out of the folder are followed.
        cache_dir: None is `xftrain` under `$XDG_CACHE_HOME`, else under `~/.cache`.

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
    if not path:
        raise ConfigError(
            "data.path must name a file or folder of text, got ''; for this folder write ."
        )
    root = Path(os.path.abspath(expand_home("data.path", path)))
    cache = cache_folder(cache_dir)
    files, skipped = list_files(root, leave_out=cache, follow_links=follow_links)
    record = DigestRecord(_record_path(cache, root), 2 * len(files) + MAX_RECORDED_FILES)
    texts = distinct_texts(files, record, skipped)
    if not texts:
        raise ConfigError(
            "data.path must hold text (valid UTF-8 without NUL bytes), got "
            f"{str(root)!r} with none (skipped {skipped}); give a file or folder of text"
            + (", or set data.follow_links=true." if skipped["outside"] else ".")
        )
    key = _key(texts, (*spec.key(), val_fraction))
    folder = cache / key
    opened = _open(folder, spec, texts, skipped)
    if opened is None:
        with exclusive_lock(cache / f".{key}.lock") as is_alone:
            # another process may have made it meanwhile
            opened = _open(folder, spec, texts, skipped)
            if opened is None:
                if folder.exists():
                    log.warning("data.path: %s is damaged and is made again", folder)
                leftovers = cache.glob(f".{key}-*") if is_alone else ()
                for leftover in [folder, *leftovers]:
                    shutil.rmtree(leftover, ignore_errors=True)
                _make(folder, root, texts, spec, val_fraction)
                opened = _open(folder, spec, texts, skipped)
    if opened is None:
        raise RunError(
            f"data.cache_dir: the token files written to {str(folder)!r} cannot be read "
            "back; check that disk or choose another folder."
        )
    log.info("data.path: %s", opened.summary)
    return opened


def _record_path(cache: Path, root: Path) -> Path:
    """The path of the recorded digests of a corpus, which differs for each user."""
    name = hashlib.blake2b(repr((os.geteuid(), os.fsencode(root))).encode(), digest_size=16)
    return cache / f".{name.hexdigest()}.digests"


def _key(texts: list[TextFile], settings: Any) -> str:
    """The name of the folder, which depends on the user, as no user trusts others' token files."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((_FORMAT, os.geteuid(), settings)).encode())
    for text in texts:
        digest.update(repr((os.fsencode(text.name), text.size, text.sha256)).encode())
    return digest.hexdigest()


def _make(
    folder: Path,
    root: Path,
    texts: list[TextFile],
    spec: TokenizerSpec,
    val_fraction: float,
) -> None:
    log.info("data.path: preparing %d files of %s", len(texts), root)
    start = time.monotonic()
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(16)}")
    try:
        temporary.mkdir(mode=0o700)
        documents = split_documents(texts, val_fraction)
        check = ContentCheck(texts)
        facts = write_token_files(temporary, documents, spec, check)
        write_meta(temporary, facts, spec)
        try:
            temporary.rename(folder)
        except OSError:
            # without locks, another process may have been faster
            if not folder.is_dir():
                raise
        sync(folder.parent)
    except UnicodeDecodeError as error:
        raise changed_error(root) from error
    except OSError as error:
        raise RunError(
            f"data.cache_dir: the token files could not be written to {str(folder.parent)!r} "
            f"({error.strerror or error}); make room there or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("data.path: prepared in %.1f s, stored in %s", time.monotonic() - start, folder)


def _open(
    folder: Path, spec: TokenizerSpec, texts: list[TextFile], skipped: Skipped
) -> TokenCache | None:
    """The opened token files, or None if they are missing or damaged.

    Raises:
        ConfigError: the folder is a link or belongs to another user.
    """
    if not is_own_folder(folder):
        return None
    try:
        meta = read_meta(folder, texts, spec)
        tokenizer = read_tokenizer(folder, spec, meta)
        return TokenCache(
            folder=folder,
            tokenizer=tokenizer,
            streams={split: open_stream(folder, split, tokenizer, meta) for split in SPLITS},
            bigram_counts=read_bigram_counts(folder, meta),
            summary=_summary(meta, skipped),
            digest=_digest(meta, tokenizer),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.debug("data.path: %s cannot be read: %s", folder, error)
        return None


def _digest(meta: Meta, tokenizer: Tokenizer) -> str:
    checksums = [meta.splits[split].sha256 for split in SPLITS]
    return hashlib.sha256(" ".join([*checksums, tokenizer.digest()]).encode()).hexdigest()


def _summary(meta: Meta, skipped: Skipped) -> str:
    train, val = meta.splits["train"], meta.splits["val"]
    return (
        f"{train.files:,} files to train on ({train.bytes:,} bytes, {train.tokens:,} tokens), "
        f"{val.files:,} held out ({val.bytes:,} bytes, {val.tokens:,} tokens); skipped {skipped}"
    )

"""A corpus as token files on disk, made once and read through memory maps.

The folder of a corpus is named by a hash of all that its content depends on. It is made under
another name and renamed when complete, so a killed preparation leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xftrain.data.corpus import SourceFile, changed, is_text, list_files, split_documents
from xftrain.data.token_files import (
    SPLITS,
    TokenizerName,
    TokenStream,
    dtype_of,
    read_tokenizer,
    seal,
    unseal,
    write_token_files,
)
from xftrain.data.tokenizer import NUM_BYTES_VOCAB, Tokenizer
from xftrain.errors import ConfigError, RunError
from xftrain.files import sync
from xftrain.interfaces import Split

log = logging.getLogger(__name__)

_BPE_VOCAB = 8192
_FORMAT = 1  # raise it when the same files would give another content


@dataclass(frozen=True)
class TokenCache:
    """A prepared corpus, open for reading.

    Attributes:
        folder: where it lies.
        tokenizer: its vocabulary.
        streams: the tokens of the two splits.
        bigram_counts: byte-bigram counts of the training text.
        summary: files, skipped files and tokens, for a person.
    """

    folder: Path
    tokenizer: Tokenizer
    streams: dict[Split, TokenStream]
    bigram_counts: npt.NDArray[np.int64]
    summary: str


def prepare(
    path: str,
    *,
    tokenizer: TokenizerName = "bytes",
    vocab_size: int | None = None,
    val_fraction: float = 0.1,
    cache_dir: str | None = None,
) -> TokenCache:
    """Opens the token files of a corpus, making them first where that is due.

    Args:
        path: a file or a folder.
        tokenizer: bytes, or a BPE trained on the training files.
        vocab_size: None is 257 for bytes and 8192 for a BPE.
        val_fraction: share of the files held out; of the bytes where there is one file.
        cache_dir: None is `xftrain` under `$XDG_CACHE_HOME`, else under `~/.cache`.

    Raises:
        ConfigError: the options do not fit each other, or there is no text to be had.
        RunError: a file changed or the disk filled up meanwhile.
    """
    vocab_size = _checked_vocab_size(tokenizer, vocab_size)
    if not 0 < val_fraction < 1:
        raise ConfigError(
            "data.val_fraction must be above 0 and below 1, because some text is held out and some "
            f"is trained on, got {val_fraction}; 0.1 is the default."
        )
    if not path:
        raise ConfigError(
            "data.path must name a file or folder of text, got ''; for this folder write ."
        )
    root = Path(os.path.abspath(os.path.expanduser(path)))
    cache = _cache_folder(cache_dir)
    files, skipped = list_files(root, leave_out=cache)
    key = _key(root, files, tokenizer, vocab_size, val_fraction)
    folder = cache / key
    opened = _open(folder, tokenizer, skipped)
    if opened is None:
        with _alone(cache / f".{key}.lock") as alone:
            opened = _open(folder, tokenizer, skipped)  # another process may have made it meanwhile
            if opened is None:
                if folder.exists():
                    log.warning("data.path: %s is damaged and is made again", folder)
                leftovers = cache.glob(f".{key}-*") if alone else ()
                for leftover in [folder, *leftovers]:
                    shutil.rmtree(leftover, ignore_errors=True)
                _make(folder, root, files, skipped, tokenizer, vocab_size, val_fraction)
                opened = _open(folder, tokenizer, skipped)
    if opened is None:
        raise RunError(
            f"data.cache_dir: what was written to {str(folder)!r} does not read back; "
            "check that disk or choose another folder."
        )
    log.info("data.path: %s", opened.summary)
    return opened


def _checked_vocab_size(tokenizer: TokenizerName, vocab_size: int | None) -> int:
    if tokenizer == "bytes":
        if vocab_size not in (None, NUM_BYTES_VOCAB):
            raise ConfigError(
                f"data.vocab_size must be {NUM_BYTES_VOCAB} with data.tokenizer=bytes (the byte "
                f"values and the document separator), got {vocab_size}; leave it null or choose "
                "data.tokenizer=bpe."
            )
        return NUM_BYTES_VOCAB
    if vocab_size is not None and vocab_size < NUM_BYTES_VOCAB:
        raise ConfigError(
            f"data.vocab_size must be at least {NUM_BYTES_VOCAB} with data.tokenizer=bpe (the byte "
            f"values and the document separator), got {vocab_size}; null is {_BPE_VOCAB}."
        )
    return vocab_size or _BPE_VOCAB


def _cache_folder(cache_dir: str | None) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.abspath(os.path.expanduser(cache_dir or f"{home}/xftrain")))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir must be a folder or a place to make one, got {str(folder)!r} "
            f"({error.strerror}); choose another."
        ) from error
    return folder


def _key(root: Path, files: list[SourceFile], *settings: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((_FORMAT, os.fsencode(root), settings)).encode())
    for file in files:
        digest.update(repr((os.fsencode(file.name), file.size, file.mtime_ns)).encode())
    return digest.hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """One process at a time; false where the file system has no locks and nobody waits."""
    try:
        file = open(path, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir must be a folder that this user may write, got {str(path.parent)!r} "
            f"({error.strerror}); choose another."
        ) from error
    with file:
        alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("data.path: waiting for another process that prepares the same text")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone


def _make(
    folder: Path,
    root: Path,
    files: list[SourceFile],
    skipped: Counter[str],
    tokenizer: TokenizerName,
    vocab_size: int,
    val_fraction: float,
) -> None:
    log.info("data.path: preparing %d files of %s", len(files), root)
    began = time.monotonic()
    texts = [file for file in files if is_text(file.path)]
    skipped = skipped + Counter(binary=len(files) - len(texts))
    if not texts:
        raise ConfigError(
            "data.path must hold text (valid UTF-8, no NUL byte in the first 8 KiB), got "
            f"{str(root)!r} with none (skipped {_counted(skipped)}); give a file or folder of text."
        )
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        facts = write_token_files(
            temporary, split_documents(texts, val_fraction), tokenizer, vocab_size
        )
        meta = {"path": str(root), "binary": skipped["binary"], **facts}
        seal(temporary, meta)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, where nobody waits
                raise
        sync(folder.parent)
    except UnicodeDecodeError as error:
        raise changed(root) from error
    except OSError as error:
        raise RunError(
            f"data.cache_dir: the token files could not be written to {str(folder.parent)!r} "
            f"({error.strerror or error}); make room there or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("data.path: prepared in %.1f s, kept in %s", time.monotonic() - began, folder)


def _open(folder: Path, name: TokenizerName, skipped: Counter[str]) -> TokenCache | None:
    if not folder.exists():
        return None
    try:
        meta = unseal(folder)
        tokenizer = read_tokenizer(folder, name)
        return TokenCache(
            folder=folder,
            tokenizer=tokenizer,
            streams={split: TokenStream(folder, split, dtype_of(tokenizer)) for split in SPLITS},
            bigram_counts=np.load(folder / "bigram.npy", allow_pickle=False),
            summary=_summary(meta, skipped + Counter(binary=meta["binary"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.debug("data.path: %s does not read back: %s", folder, error)
        return None


def _summary(meta: dict[str, Any], skipped: Counter[str]) -> str:
    train, val = meta["train"], meta["val"]
    return (
        f"{train['files']:,} files to train on ({train['bytes']:,} bytes, {train['tokens']:,} "
        f"tokens), {val['files']:,} held out ({val['bytes']:,} bytes, {val['tokens']:,} tokens); "
        f"skipped {_counted(skipped)}"
    )


def _counted(skipped: Counter[str]) -> str:
    """`312 binary files, 1 empty file`."""
    counts = [(why, n) for why, n in sorted(skipped.items()) if n]
    return ", ".join(f"{n:,} {why} file{'s' * (n > 1)}" for why, n in counts) or "no files"

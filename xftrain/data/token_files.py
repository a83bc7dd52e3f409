"""What lies in the cache folder of a corpus, and how it is written and checked.

    meta.json       counts, sizes and checksums, itself sealed by a checksum
    train.bin       tokens, uint16 or uint32: separator, document, separator, document, separator
    train.npy       where the separators are; val.bin and val.npy likewise
    bigram.npy      byte-bigram counts of the training text
    tokenizer.json  the BPE vocabulary, in the form of `tokenizers`; not with bytes

What is read back is checked first; nothing of it is unpickled or run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xftrain.data.bigram import BigramCounts
from xftrain.data.corpus import PIECE_BYTES, Document, read_pieces
from xftrain.data.tokenizer import Bpe, Bytes, Tokenizer
from xftrain.files import sync
from xftrain.interfaces import Split

log = logging.getLogger(__name__)

TokenizerName = Literal["bytes", "bpe"]
SPLITS: tuple[Split, Split] = ("train", "val")
BPE_SAMPLE_BYTES = 64 << 20  # of training text; more makes no better vocabulary, only a later one


class TokenStream:
    """One split's tokens, memory-mapped.

    Attributes:
        tokens: uint16 or uint32, a separator before and after every document.
        boundaries: int64 positions of the separators.
    """

    def __init__(self, folder: Path, split: Split, dtype: str) -> None:
        self._arguments = (folder, split, dtype)
        # The plain view indexes several times faster than the memmap subclass.
        self.tokens = np.asarray(np.memmap(folder / f"{split}.bin", dtype=dtype, mode="r"))
        self.boundaries = np.load(folder / f"{split}.npy", allow_pickle=False)

    def __reduce__(self) -> tuple[type[TokenStream], tuple[Path, Split, str]]:
        return TokenStream, self._arguments  # a worker process maps the file, not a copy of it


def write_token_files(
    folder: Path, documents: dict[Split, list[Document]], name: TokenizerName, vocab_size: int
) -> dict[str, Any]:
    """Writes all but meta.json, one file of the corpus at a time; returns the counts for it."""
    tokenizer = Bytes() if name == "bytes" else _train_bpe(documents["train"], vocab_size)
    if isinstance(tokenizer, Bpe):
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    counts = BigramCounts()
    facts: dict[str, Any] = {}
    for split in SPLITS:
        pieces = _separated(documents[split])
        boundaries = []
        num_tokens = 0
        with open(folder / f"{split}.bin", "wb") as file:
            for tokens in tokenizer.encode(counts.watch(pieces) if split == "train" else pieces):
                if tokens[0] == tokenizer.separator:
                    boundaries.append(num_tokens)
                num_tokens += tokens.size
                file.write(tokens.astype(dtype_of(tokenizer)).tobytes())
        np.save(folder / f"{split}.npy", np.array(boundaries, dtype=np.int64))
        facts[split] = {
            "files": len(documents[split]),
            "bytes": sum(document.end - document.begin for document in documents[split]),
            "tokens": num_tokens,
        }
    np.save(folder / "bigram.npy", counts.counts)
    return facts


def _separated(documents: list[Document]) -> Iterator[bytes]:
    yield b""
    for document in documents:
        yield from read_pieces(document)
        yield b""


def _train_bpe(documents: list[Document], vocab_size: int) -> Bpe:
    num_bytes = sum(document.end - document.begin for document in documents)
    step = -(-num_bytes // BPE_SAMPLE_BYTES)
    if step > 1:
        log.info(
            "data.tokenizer: the vocabulary is trained on one piece of text in every %d, of %d KiB "
            "each, because the training text has %d MiB",
            step,
            PIECE_BYTES >> 10,
            num_bytes >> 20,
        )
    pieces = (piece for document in documents for piece in read_pieces(document))
    tokenizer = Bpe.train(islice(pieces, 0, None, step), vocab_size)
    if tokenizer.vocab_size < vocab_size:
        log.info(
            "data.vocab_size: the training text gives %d tokens, not %d: no further pair of tokens "
            "occurs twice in it",
            tokenizer.vocab_size,
            vocab_size,
        )
    return tokenizer


def read_tokenizer(folder: Path, name: TokenizerName) -> Tokenizer:
    """The vocabulary of the token files."""
    if name == "bytes":
        return Bytes()
    return Bpe.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))


def dtype_of(tokenizer: Tokenizer) -> str:
    """How tokens are stored."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def seal(folder: Path, meta: dict[str, Any]) -> None:
    """Writes meta.json with the sizes of all files and the checksums of the small ones."""
    files = sorted(folder.iterdir())
    meta["sizes"] = {file.name: file.stat().st_size for file in files}
    meta["sha256"] = {file.name: _sha256(file) for file in files if file.suffix != ".bin"}
    sealed = {"meta": meta, "sha256": hashlib.sha256(_canonical(meta)).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        sync(path)  # else a power failure may leave a renamed folder of empty files


def unseal(folder: Path) -> dict[str, Any]:
    """What `seal` was given; raises ValueError where a file is not as it was then."""
    sealed = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    meta: dict[str, Any] = sealed["meta"]
    if sealed["sha256"] != hashlib.sha256(_canonical(meta)).hexdigest():
        raise ValueError("meta.json does not match its checksum")
    for name, size in meta["sizes"].items():
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} has not its {size} bytes")
    for name, checksum in meta["sha256"].items():
        if _sha256(folder / name) != checksum:
            raise ValueError(f"{name} does not match its checksum")
    return meta


def _canonical(meta: dict[str, Any]) -> bytes:
    return json.dumps(meta, sort_keys=True).encode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

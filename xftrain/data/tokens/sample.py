"""Training text for a vocabulary: all of a corpus of whole-text files, or else a sample of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from xftrain.data.corpus.files import read_pieces
from xftrain.data.tokens import choice
from xftrain.data.tokens.corpus import Corpus
from xftrain.data.tokens.documents import DocumentReader

log = logging.getLogger(__name__)

_READ = 2  # times the size of the sample, of bytes of files


def training_text(corpus: Corpus) -> tuple[Iterator[bytes], int]:
    """Pieces of the training documents, and about how many bytes these have.

    Of record files and compressed files, whose text has an unknown size, each file's beginning is
    read, by its share of the bytes of all files, and of that as much is taken as `choice` takes.
    """
    if corpus.is_plain:
        documents = [
            document
            for _, parts in corpus.whole_documents()
            for split, document in parts
            if split == "train"
        ]
        num_bytes = sum((document.end or 0) - document.begin for document in documents)
        return (piece for document in documents for piece in read_pieces(document)), num_bytes
    return _sample(corpus), 0


def _sample(corpus: Corpus) -> Iterator[bytes]:
    """Every n-th piece of what is read; n doubles whenever the sample would be too large."""
    num_bytes = sum(file.size for file in corpus.files)
    share = min(1.0, _READ * choice.BPE_SAMPLE_BYTES / num_bytes)
    limits = {file: max(1, round(file.size * share)) for file in corpus.files}
    sample: list[bytes] = []
    step, size, number, num_read = 1, 0, 0, 0
    for split, piece in DocumentReader(corpus, limits).pieces():
        piece = corpus.text_of(piece)
        if split != "train" or not piece:
            continue
        num_read += len(piece)
        if number % step == 0:
            sample.append(piece)
            size += len(piece)
        number += 1
        while size > choice.BPE_SAMPLE_BYTES and len(sample) > 1:
            sample, step = sample[::2], 2 * step
            size = sum(map(len, sample))
    if step > 1 or share < 1:
        log.info(
            "data.tokenizer: the vocabulary is trained on %d KiB of text, one piece in every %d of "
            "the first %d KiB of the files",
            size >> 10,
            step,
            num_read >> 10,
        )
    sample.reverse()
    while sample:  # its memory goes while it is read
        yield sample.pop()

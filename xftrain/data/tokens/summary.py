"""The numbers of a corpus in one line."""

from __future__ import annotations

from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens.corpus import Corpus
from xftrain.data.tokens.stream import Meta


def summary_of(corpus: Corpus, meta: Meta, skipped: Skipped) -> str:
    """The numbers of files or documents, tokens, and of what is skipped."""
    train, val = meta.splits["train"], meta.splits["val"]
    if corpus.has_records:
        counts = f"{train.documents:,} documents", f"{val.documents:,}"
        copies = f" {meta.num_duplicates:,} documents are copies of earlier ones;"
    else:
        counts, copies = (f"{train.files:,} files", f"{val.files:,}"), ""
    return (
        f"{counts[0]} to train on ({train.bytes:,} bytes, {train.tokens:,} tokens), "
        f"{counts[1]} held out ({val.bytes:,} bytes, {val.tokens:,} tokens);{copies} "
        f"skipped {skipped}"
    )

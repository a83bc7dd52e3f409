"""What is known of the documents of a data source, for the report before training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitContent:
    """The documents of one split; None is unknown.

    Attributes:
        num_documents: number of documents.
        num_tokens: number of tokens, separators included.
        num_bytes: bytes of text.
        length_edges: ascending lengths of documents in tokens, one more than there are counts.
        length_counts: number of documents from each of these lengths up to the next one.
    """

    num_documents: int | None = None
    num_tokens: int | None = None
    num_bytes: int | None = None
    length_edges: tuple[int, ...] = ()
    length_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class SourceFacts:
    """The documents of one source of data.

    Attributes:
        name: name of the source; empty if it is the only one.
        train: what is trained on.
        val: what is held out.
        num_duplicates: number of documents of both splits that are copies of earlier ones.
    """

    name: str = ""
    train: SplitContent = SplitContent()
    val: SplitContent = SplitContent()
    num_duplicates: int | None = None

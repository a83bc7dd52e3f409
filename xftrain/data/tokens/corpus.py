"""The files of a corpus, and what divides them into documents, splits and pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xftrain.data.corpus.files import Document, text_pieces
from xftrain.data.corpus.selection import Conversations
from xftrain.data.corpus.skipped import WITHOUT_RECORDS, Skipped
from xftrain.data.corpus.split import name_hash, split_documents, threshold_of, whole_document
from xftrain.data.tokens.content import TextFile
from xftrain.data.tokens.tokenizer import Tokenizer
from xftrain.data.tokens.turns import TurnEncoder, text_of_piece, turn_pieces
from xftrain.errors import ConfigError

if TYPE_CHECKING:  # it would import torch
    from xftrain.interfaces import Split


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus, and what divides them into documents and splits.

    Attributes:
        texts: the files of `data.path`.
        held_out: the files of `data.val_path`; without any, hashes decide what is held out.
        text_key: the key of the text in a record, or the keys of its conversation.
        threshold: hashes below it are of documents that are held out.
        val_fraction: fraction of the documents to be held out.
    """

    texts: list[TextFile]
    held_out: list[TextFile]
    text_key: str | Conversations
    val_fraction: float
    threshold: int = -1

    def __post_init__(self) -> None:
        if self.threshold < 0:
            object.__setattr__(self, "threshold", threshold_of(self.val_fraction))

    @property
    def files(self) -> list[TextFile]:
        """All files."""
        return [*self.texts, *self.held_out]

    @property
    def has_records(self) -> bool:
        """Whether a file holds a document in each record."""
        return any(text.has_records for text in self.files)

    @property
    def is_plain(self) -> bool:
        """Whether each file is one document, and as large as it."""
        return all(text.is_plain for text in self.files)

    @property
    def has_turns(self) -> bool:
        """Whether each document is a conversation."""
        return isinstance(self.text_key, Conversations)

    def record_pieces(self, content: bytes) -> Iterator[bytes]:
        """The pieces of the text of a record; those of a conversation are tagged."""
        return turn_pieces(content) if self.has_turns else text_pieces(content)

    def text_of(self, piece: bytes) -> bytes:
        """The text of a piece."""
        return text_of_piece(piece) if self.has_turns else piece

    def encoder(self, tokenizer: Tokenizer) -> Tokenizer:
        """What encodes the pieces into the tokens that are stored."""
        return TurnEncoder(tokenizer) if self.has_turns else tokenizer

    def whole_documents(self) -> list[tuple[TextFile, list[tuple[Split, Document]]]]:
        """Each file with the documents and splits that its name determines: none for records.

        Held-out files come first, so that a run that trains meanwhile can validate.
        """
        if self.held_out or self.has_records:
            return [
                (text, [] if text.has_records else [(self._split_of(text), whole_document(text))])
                for text in (*self.held_out, *self.texts)
            ]
        of_file: dict[Any, list[tuple[Split, Document]]] = {text.path: [] for text in self.texts}
        for split, documents in split_documents(self.texts, self.val_fraction).items():
            for document in documents:
                of_file[document.path].append((split, document))
        return [(text, of_file[text.path]) for text in self.texts]

    def split_of_record(self, text: TextFile, number: int) -> Split:
        """The split of a record of a file, by the hash of its text."""
        if self.held_out:
            return "val" if text in self._set_held_out else "train"
        return "val" if number < self.threshold else "train"

    @cached_property
    def _set_held_out(self) -> frozenset[TextFile]:
        return frozenset(self.held_out)

    def _split_of(self, text: TextFile) -> Split:
        return self.split_of_record(text, name_hash(text.name))


def corpus_of(
    texts: list[TextFile],
    held_out: list[TextFile],
    text_key: str | Conversations,
    val_fraction: float,
    skipped: Skipped,
) -> Corpus:
    """The corpus of files; of conversations, without the files that are one document.

    Args:
        texts: the files of `data.path`.
        held_out: the files of `data.val_path`.
        text_key: the key of the text in a record, or the keys of its conversation.
        val_fraction: fraction of the documents to be held out.
        skipped: gets the number of files that are left out.

    Raises:
        ConfigError: no file of conversations is left.
    """
    if isinstance(text_key, Conversations):
        for file in [*texts, *held_out]:
            if not file.has_records:
                skipped.add(WITHOUT_RECORDS, file.name)
        named = {"data.path": texts, "data.val_path": held_out}
        kept = {key: [file for file in files if file.has_records] for key, files in named.items()}
        for key, files in named.items():
            if files and not kept[key]:
                raise ConfigError(
                    f"{key} must have a file of records with conversations, got none (skipped "
                    f"{skipped}); give JSON lines, CSV, Parquet or Arrow files, or use data=text."
                )
        texts, held_out = kept["data.path"], kept["data.val_path"]
    return Corpus(texts, held_out, text_key, val_fraction)

"""Where batches come from, and what their tokens stand for."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from xftrain.interfaces.batch import Batch

Split = Literal["train", "val"]


class Vocabulary(Protocol):
    """What tokens stand for, apart from the data; a checkpoint needs no more to be sampled from.

    Those of `xftrain/data/vocabulary.py` and `tokenizer.py` are rebuilt from a checkpoint by their
    `kind`. One of your own trains and is compared on resume, but cannot be sampled from.

    Attributes:
        kind: `integers`, `bytes` or `bpe`.
        vocab_size: V; every token is below it.
    """

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt.

        Raises:
            ConfigError: the text cannot be written in this vocabulary.
        """
        ...

    def decode(self, tokens: list[int]) -> str:
        """Tokens as text for a person."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content: equal for equal meanings of all tokens, on any machine."""
        ...


class DataSource(Protocol):
    """Where batches come from (`conf/data/`).

    Every batch is a pure function of (seed, split, step, rank): nothing to save, nothing to lose.
    Constructor: `(seq, batch_size, seed, world_size, *, <options>)`.

    A class of your own may leave out `vocabulary` and `digest`. Then its checkpoints cannot be
    sampled from, and a resumed run cannot tell whether its data has changed.

    Attributes:
        vocab_size: V; every token is below it.
        vocabulary: what the tokens stand for.
        num_val_batches: how many validation batches there are.
        stop_at_accuracy: validation accuracy at which the task counts as solved, or None.
    """

    vocab_size: int
    vocabulary: Vocabulary
    num_val_batches: int
    stop_at_accuracy: float | None

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch of one micro-step, on the CPU."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Tokens as text for a person."""
        ...

    def digest(self) -> str:
        """SHA-256 of all content that batches are made of, but for seed, sizes and ranks.

        A resumed run compares it: another place or another time of the same content does not
        change it, one other byte does.
        """
        ...

    def num_label_bytes(self, labels_BM: Tensor) -> int | None:
        """Bytes of text that the labels stand for; None where the data is not text."""
        ...

    def baseline(self) -> dict[str, float]:
        """Figures of a trivial model on the validation batches, by metric name; may be empty."""
        ...

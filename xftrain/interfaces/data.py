"""The interfaces of data sources and vocabularies."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.interfaces.batch import IGNORED_LABEL, Batch
from xftrain.interfaces.batch_checks import BatchError, check_batch, describe_value, value_reasons
from xftrain.interfaces.facts import SourceFacts

Split = Literal["train", "val"]


class Vocabulary(Protocol):
    """Maps tokens to text and back; sampling from a checkpoint needs it, but no training data.

    The classes of `xftrain/data/tokens/` are rebuilt from a checkpoint by their `kind`. A class of
    your own works in training and is compared on resume, but a checkpoint with it cannot be sampled
    from.

    Attributes:
        kind: `integers`, `bytes` or `bpe`.
        vocab_size: V; every token is below it.
    """

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt.

        Raises:
            ConfigError: the text cannot be written in this vocabulary.
        """
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, for a person to read."""
        ...

    def digest(self) -> str:
        """SHA-256 of the vocabulary, equal on any machine if all tokens have the same meaning."""
        ...


class DataSource(Protocol):
    """Makes batches (`conf/data/`).

    Every batch is a pure function of (seed, split, step, rank), so there is no state to save.
    Constructor: `(seq, batch_size, seed, world_size, *, <options>)`.

    A class of your own may leave out `vocabulary`, `digest` and `facts`. Then its checkpoints
    cannot be sampled from, a resumed run cannot tell whether its data has changed, and the report
    before training does not say what it holds.

    Attributes:
        vocab_size: V; every token is below it.
        vocabulary: maps the tokens to text.
        num_val_batches: number of validation batches.
        stop_at_accuracy: validation accuracy at which the task counts as solved, or None.

    A class with several sources may have `val_sources`, a tuple with the name of the source of each
    validation batch: the loss is then recorded for each source too, as `val/<source>/loss`.
    """

    vocab_size: int
    vocabulary: Vocabulary
    num_val_batches: int
    stop_at_accuracy: float | None

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch of one micro-step, on the CPU."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, for a person to read."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content that batches are made of, without seed, sizes and ranks.

        A resumed run compares it. Moving or copying the files must not change it; changing one byte
        must.
        """
        ...

    def facts(self) -> list[SourceFacts]:
        """What is known of its documents; empty if it has none, as batches are made on demand."""
        ...

    def num_label_bytes(self, labels_BM: Tensor) -> int | None:
        """Number of bytes of text that the labels spell; None if the data is not text."""
        ...

    def baseline(self) -> dict[str, float]:
        """Metrics of a trivial model on the validation batches, by metric name; may be empty."""
        ...


def load_batch(
    data: DataSource, split: Split, step: int, rank: int = 0, *, is_first: bool = False
) -> Batch:
    """The batch of a micro-step, checked; all batches are read here.

    Args:
        data: the data source.
        split: training or validation.
        step: the micro-step.
        rank: the rank.
        is_first: whether to check the values of a batch on a GPU too, which waits for the device;
            those of a batch on the CPU are checked in any case.

    Raises:
        ConfigError: the class returns something other than a batch, or a batch with wrong dtypes,
            shapes or values.
    """
    said = f"data: {type(data).__name__}.batch({split!r}, {step})"
    try:
        batch = data.batch(split, step, rank)
        if isinstance(batch, Batch):  # again, since a batch can be changed after it is made
            check_batch(batch.tokens_BM, batch.labels_BM, batch.positions_1M, batch.seqlens)
    except BatchError as error:
        raise ConfigError(f"{said}: {error}") from error
    except StopIteration as error:
        raise ConfigError(
            f"{said} raised StopIteration: a data source must have a batch for every step."
        ) from error
    if not isinstance(batch, Batch):
        raise ConfigError(
            f"{said} must return an xftrain.interfaces.Batch, got {describe_value(batch)}."
        )
    kind = batch.tokens_BM.device.type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{said} must return tensors on the CPU, got them on {kind}.")
    if kind == "cpu" or is_first:
        host = batch if kind == "cpu" else batch.to("cpu")
        reasons = value_reasons(
            host.tokens_BM,
            host.labels_BM,
            host.positions_1M,
            host.seqlens,
            vocab_size=data.vocab_size,
            ignored_label=IGNORED_LABEL,
        )
        if reasons:
            raise ConfigError(f"{said}: {'; '.join(reasons)}: correct the data source.")
    return batch

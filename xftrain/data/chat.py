"""Fine-tuning on conversations, whose labels are the answers alone."""

from __future__ import annotations

from xftrain.config.fields import NonNegativeInt, Packing, PositiveInt, Probability, VocabSize
from xftrain.data._conversation_rows import ConversationRows
from xftrain.data._row_source import RowSource
from xftrain.data._seeding import Shuffle
from xftrain.data.corpus.selection import Conversations
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.facts import source_facts
from xftrain.interfaces import SourceFacts


class Chat(RowSource):
    r"""Next-token prediction of the answers in conversations.

    A record has a list of messages, each with `role` (system, developer, user, assistant or tool)
    and `content`; or else a prompt and its completion. They are written as tokens so:

        <separator>user\nHello<separator>assistant\nGood day.<separator>
        <separator>the prompt, immediately followed by its completion<separator>

    Labels are the contents of the assistant's messages and the completions, each with the separator
    that ends it. A row holds whole conversations, each of which attends only to itself: as many as
    fit, by best fit, or one without packing. The rest of a row is padding, which has no labels.

    Training visits all conversations once an epoch, in an order given by (seed, epoch), and a batch
    may span two epochs. Validation uses a fixed, evenly spread subset of those held out.

    Args:
        seq: tokens per row; longer conversations are cut, or left out if no label remains.
        batch_size: rows per micro-batch and rank; with packing, their tokens form one row.
        seed: seed of the training order.
        world_size: number of ranks.
        path: files, folders and globs of records.
        val_path: those that are held out; null holds out a part of `path`.
        messages_key: the key of the messages in a record; dots lead into nested records.
        prompt_key: the key of the prompt in a record without messages.
        completion_key: the key of its completion.
        completion_only: whether only the answers are labels, or all tokens.
        tokenizer: as for `Text`.
        vocab_size: as for `Text`.
        packing: true and best_fit are the same; false is one conversation in a row. A run replaces
            null by true where the attention backend computes packed rows at full speed; otherwise
            null is false.
        val_fraction: fraction of the conversations held out.
        follow_links: whether links that lead out of the folder are followed.
        num_val_batches: maximum number of validation batches, limited by what is held out.
        cache_dir: the user's folder of token files and vocabularies; null is ~/.cache/xftrain.
        num_workers: processes that tokenize, 0 being this one alone; null is one for each CPU.

    Attributes:
        share_padding: share of padding in the tokens of an epoch.
        share_cut: share of the conversations of at most `seq` tokens that are cut: 0.

    Raises:
        ConfigError: there are no conversations, none has a label within `seq` tokens, or the
            options contradict each other.
        RunError: a file changed or the disk was full during preparation, or token files are
            damaged.
    """

    def __init__(
        self,
        seq: int,
        batch_size: int,
        seed: int,
        world_size: int,
        *,
        path: str | list[str],
        val_path: str | list[str] | None = None,
        messages_key: str = "messages",
        prompt_key: str = "prompt",
        completion_key: str = "completion",
        completion_only: bool = True,
        tokenizer: str = "bytes",
        vocab_size: VocabSize | None = None,
        packing: Packing | None = None,
        val_fraction: Probability = 0.1,
        follow_links: bool = False,
        num_val_batches: PositiveInt = 8,
        cache_dir: str | None = None,
        num_workers: NonNegativeInt | None = None,
    ) -> None:
        self._cache = prepare(
            path,
            val_path=val_path,
            text_key=Conversations(messages_key, prompt_key, completion_key),
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val_fraction=val_fraction,
            follow_links=follow_links,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        rows = ConversationRows(
            self._cache, seq, batch_size, bool(packing), completion_only, Shuffle(seed)
        )
        self.set_rows(
            rows,
            self._cache.tokenizer,
            seq=seq,
            batch_size=batch_size,
            world_size=world_size,
            packing=packing,
            num_val_batches=num_val_batches,
        )

    def digest(self) -> str:
        """SHA-256 of the tokens of both splits, of which are labels, and of the vocabulary."""
        return self._cache.digest

    def facts(self) -> list[SourceFacts]:
        """The conversations of both splits, and how many are copies."""
        return [source_facts(self._cache)]

    def baseline(self) -> dict[str, float]:
        """Nothing: a bigram model of all text does not compare with a model of the answers."""
        return {}

"""Any file or folder of text, in bytes or tokens, in plain or packed rows."""

from __future__ import annotations

from xftrain.config.fields import NonNegativeInt, Packing, PositiveInt, Probability, VocabSize
from xftrain.data._row_source import RowSource
from xftrain.data._seeding import Shuffle
from xftrain.data._streamed_rows import StreamedRows
from xftrain.data._text_source import bits_per_byte, sum_scores
from xftrain.data._token_rows import TokenRows, check_sizes
from xftrain.data.tokens.bigram import Bigram
from xftrain.data.tokens.cache import TokenCache, find
from xftrain.data.tokens.facts import source_facts
from xftrain.data.tokens.growing import GrowingTokens
from xftrain.interfaces import SourceFacts, SplitContent


class Text(RowSource):
    """Next-token prediction on the text of a file or folder.

    The token stream is cut into pieces. Without packing, a row is one piece of `seq` consecutive
    tokens, which may cross documents. With packing, a piece is at most `seq` tokens of one
    document, and pieces are concatenated to one row of `batch_size * seq` tokens; the last piece is
    cut at the end of the row, and the next row begins with the rest as a separate piece. With
    `best_fit`, documents are fitted into rows of `seq` tokens, and only those that are longer are
    cut; a batch is `batch_size` such rows, concatenated to one, with padding that has no labels.

    Training visits all pieces once an epoch, in an order given by (seed, epoch), and a batch
    may span two epochs. Validation uses a fixed, evenly spread subset of the held-out pieces, each
    once, the same for every seed and rank.

    Args:
        seq: tokens per row.
        batch_size: rows per micro-batch and rank; with packing, their tokens form one row.
        seed: seed of the training order.
        world_size: number of ranks.
        path: files, folders and globs of text and of records.
        val_path: those that are held out; null holds out a part of `path`.
        text_key: the key of the text in a record; dots lead into nested records.
        tokenizer: bytes; bpe (byte-level, trained once on the training files); or the path of a
            tokenizer.json, or of a Hugging Face folder that holds one.
        vocab_size: null is 257 for bytes, 8192 for bpe, and that of a tokenizer.json, the document
            separator included.
        packing: false, true or best_fit. A run replaces null by true where the attention backend
            computes packed rows at full speed; otherwise null is false.
        val_fraction: fraction of the documents held out, or of the bytes of a single text file.
        follow_links: whether links that lead out of the folder are followed.
        num_val_batches: maximum number of validation batches, limited by the held-out text.
        cache_dir: the user's folder of token files and vocabularies; null is ~/.cache/xftrain.
        num_workers: processes that tokenize, 0 being this one alone; null is one for each CPU.
        stream: whether training starts when the first text is prepared. It has the same pieces in
            another order: windows of about four million tokens, each shuffled in itself, in the
            order of the text in the first epoch; it validates on the first held-out documents.

    Attributes:
        share_padding: share of padding in the tokens of an epoch.
        share_cut: share of the documents of at most `seq` tokens that are cut.

    Raises:
        ConfigError: there is no text or too little, or the options contradict each other.
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
        text_key: str = "text",
        tokenizer: str = "bytes",
        vocab_size: VocabSize | None = None,
        packing: Packing | None = None,
        val_fraction: Probability = 0.1,
        follow_links: bool = False,
        num_val_batches: PositiveInt = 8,
        cache_dir: str | None = None,
        num_workers: NonNegativeInt | None = None,
        stream: bool = False,
    ) -> None:
        found = find(
            path,
            val_path=val_path,
            text_key=text_key,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            val_fraction=val_fraction,
            follow_links=follow_links,
            cache_dir=cache_dir,
            num_workers=num_workers,
        )
        self._cache: TokenCache | GrowingTokens
        rows: TokenRows | StreamedRows
        if stream:
            self._cache = tokens = GrowingTokens(found)
            rows = StreamedRows(
                tokens, seq, batch_size, packing or False, Shuffle(seed), num_val_batches
            )
            check_sizes(tokens, seq, "data.path", path)
        else:
            self._cache = cache = found.finish()
            check_sizes(cache, seq, "data.path", path)
            rows = TokenRows(cache, seq, batch_size, packing or False, Shuffle(seed))
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
        """SHA-256 of the tokens of both splits, or of what determines them, and the vocabulary."""
        return self._cache.digest

    def facts(self) -> list[SourceFacts]:
        """The documents of both splits, and how many are copies."""
        whole = self._cache.whole if isinstance(self._cache, GrowingTokens) else self._cache
        if whole is None:  # unknown
            return [SourceFacts("", SplitContent(), SplitContent())]
        return [source_facts(whole)]

    def baseline(self) -> dict[str, float]:
        """Bits per byte of a byte-bigram model of the training text, on the validation batches.

        It is the bits of all labels, separators included, divided by the bytes that they spell, so
        that it compares with the bits per byte of a language model with any vocabulary.
        """
        bigram = Bigram(self._cache.bigram_counts, self._cache.tokenizer.spellings)
        batches = (self.batch("val", step) for step in range(self.num_val_batches))
        return bits_per_byte({"": sum_scores(self.bigram_score(bigram, b) for b in batches)})

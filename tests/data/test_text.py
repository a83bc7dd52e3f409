import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xftrain.data.text import Text
from xftrain.data.tokens import choice
from xftrain.interfaces import IGNORED_LABEL, positions_of

SEPARATOR = 256
WORDS = "the cat sat on the mat and the dog sat on the log, naïve façade 漢字 \U0001f600\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 files of 100 to 700 characters."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    for number in range(60):
        begin, length = draw.integers(70), draw.integers(100, 700)
        (folder / f"{number:02}.txt").write_text((f"{number} " + WORDS * 10)[begin:][:length])
    return folder


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def text(corpus, cache_dir):
    """Builds Text over the corpus; keyword arguments replace the defaults."""

    def build(seq=16, batch_size=4, seed=0, world_size=1, **options):
        options = {"path": str(corpus), "cache_dir": cache_dir} | options
        return Text(seq, batch_size, seed, world_size, **options)

    return build


def stream_of(texts):
    """Separator, document, separator, ..., separator: what the token files hold."""
    symbols = [SEPARATOR]
    for one in texts:
        symbols += [*one.encode(), SEPARATOR]
    return symbols


def equal(a, b):
    return (
        all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("tokens_BM", "labels_BM"))
        and torch.equal(a.positions_1M, b.positions_1M)
        and a.seqlens == b.seqlens
    )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_batches_are_a_pure_function_of_seed_step_and_rank(text, tokenizer, packing):
    options = {"tokenizer": tokenizer, "packing": packing, "vocab_size": None}
    one, other = (text(world_size=2, **options) for _ in range(2))
    steps = [0, 1, 7, 300, 5000]
    forward = {(s, r): one.batch("train", s, r) for s in steps for r in (0, 1)}
    for step, rank in reversed(forward):  # straight to a late step, then back
        assert equal(other.batch("train", step, rank), forward[step, rank])
    assert not equal(forward[0, 0], forward[0, 1])
    assert not equal(forward[0, 0], forward[1, 0])
    assert not equal(forward[0, 0], text(world_size=2, seed=1, **options).batch("train", 0, 0))


@pytest.mark.parametrize("packing", [False, True])
def test_validation_is_the_same_for_every_seed_and_rank(text, packing):
    one, other = text(packing=packing), text(packing=packing, seed=5, world_size=3)
    for step in range(one.num_val_batches):
        assert equal(one.batch("val", step), other.batch("val", step, rank=2))


def test_every_epoch_has_an_order_of_its_own(text):
    data = text(batch_size=1)
    num_rows = (stream(data, "train").size - 1) // 16
    first, second = (
        [data.batch("train", epoch * num_rows + row).tokens_BM.tolist() for row in range(20)]
        for epoch in (0, 1)
    )
    assert first != second and first != sorted(first)


def test_batches_have_the_types_of_the_interface(text):
    plain, packed = text().batch("train", 0), text(packing=True).batch("train", 0)
    assert plain.tokens_BM.shape == (4, 16) and plain.seqlens is None
    assert packed.tokens_BM.shape == (1, 64) and sum(packed.seqlens) == 64
    for batch in (plain, packed):
        for tensor in (batch.tokens_BM, batch.labels_BM, batch.positions_1M):
            assert tensor.dtype == torch.int64 and tensor.device.type == "cpu"
        assert torch.equal(
            batch.positions_1M, positions_of(batch.tokens_BM.shape[1], batch.seqlens)
        )


def as_string(symbols):
    """Tokens as characters, so that `in` finds a run of them."""
    return "".join(map(chr, symbols))


def build(folder, contents, shape, packing, num_val_batches=3):
    for number, content in enumerate(contents):
        (Path(folder) / f"{number}.txt").write_text(content, newline="")
    seq, batch_size, world_size = shape
    options = {"packing": packing, "num_val_batches": num_val_batches, "path": folder}
    return Text(seq, batch_size, 0, world_size, cache_dir=f"{folder}/cache", **options)


def runs_of(batch):
    """Each row or packed piece with the label that follows it, as one run of symbols."""
    if batch.seqlens is None:
        pieces = zip(batch.tokens_BM, batch.labels_BM, strict=True)
    else:
        rows = (batch.tokens_BM[0], batch.labels_BM[0])
        pieces = zip(*(row.split(batch.seqlens) for row in rows), strict=True)
    for tokens, labels in pieces:
        assert torch.equal(tokens[1:], labels[:-1])
        yield [*tokens.tolist(), int(labels[-1])]


def stream(data, split):
    return data._cache.streams[split].tokens.astype(np.int64)


# a NUL would make a file binary, to be skipped
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
contents = st.lists(st.text(letters, min_size=8), min_size=3, max_size=8, unique=True)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))  # seq, batch, ranks


@settings(max_examples=25, deadline=None)
@given(contents, shapes, st.booleans())
def test_each_epoch_trains_on_every_place_once(contents, shape, packing):
    seq, batch_size, world_size = shape
    with tempfile.TemporaryDirectory() as folder:
        data = build(folder, contents, shape, packing)
        tokens = stream(data, "train")
        epoch = tokens.size - 1 if packing else (tokens.size - 1) // seq * seq
        num_steps = -(-2 * epoch // (seq * batch_size * world_size))
        batches = [data.batch("train", s, r) for s in range(num_steps) for r in range(world_size)]
    seen = torch.cat([torch.stack((b.tokens_BM, b.labels_BM)).flatten(1) for b in batches], dim=1)
    pairs = list(zip(*seen.tolist(), strict=True))
    expected = sorted(zip(tokens[:epoch].tolist(), tokens[1 : epoch + 1].tolist(), strict=True))
    for number in (0, 1):
        assert sorted(pairs[number * epoch : (number + 1) * epoch]) == expected


@settings(max_examples=25, deadline=None)
@given(contents, shapes)
def test_a_packed_piece_is_a_run_of_one_document(contents, shape):
    seq, batch_size, world_size = shape
    documents = [as_string(stream_of([content])) for content in contents]
    with tempfile.TemporaryDirectory() as folder:
        data = build(folder, contents, shape, packing=True)
        batches = [data.batch("train", step) for step in range(4)]
        batches += [data.batch("val", step) for step in range(data.num_val_batches)]
    for batch in batches:
        assert max(batch.seqlens) <= seq
        for run in runs_of(batch):
            assert any(as_string(run) in document for document in documents)
    for batch in batches[:4]:
        assert batch.num_tokens == seq * batch_size


@settings(max_examples=25, deadline=None)
@given(contents, shapes)
def test_a_plain_row_is_a_run_of_the_stream(contents, shape):
    with tempfile.TemporaryDirectory() as folder:
        data = build(folder, contents, shape, packing=False)
        for split, num_steps in (("train", 4), ("val", data.num_val_batches)):
            whole = as_string(stream(data, split).tolist())
            for step in range(num_steps):
                assert all(as_string(run) in whole for run in runs_of(data.batch(split, step)))


@settings(max_examples=25, deadline=None)
@given(contents, shapes, st.booleans(), st.integers(1, 12))
def test_validation_repeats_nothing_and_takes_all_where_there_is_little(
    contents, shape, packing, num_val_batches
):
    seq, batch_size, _ = shape
    with tempfile.TemporaryDirectory() as folder:
        data = build(folder, contents, shape, packing, num_val_batches)
        tokens = stream(data, "val")
        batches = [data.batch("val", step) for step in range(data.num_val_batches)]
    available = tokens.size - 1 if packing else (tokens.size - 1) // seq * seq
    scored = sum(batch.num_tokens for batch in batches)
    assert 0 < scored == min(available, num_val_batches * batch_size * seq)
    assert all(batch.num_tokens == batch_size * seq for batch in batches[:-1])
    assert data.num_val_batches <= num_val_batches
    if scored == available:
        seen = torch.cat([torch.stack((b.tokens_BM, b.labels_BM)).flatten(1) for b in batches], 1)
        expected = zip(tokens[:available].tolist(), tokens[1 : available + 1].tolist(), strict=True)
        assert sorted(zip(*seen.tolist(), strict=True)) == sorted(expected)


def test_more_validation_batches_keep_the_first_ones(text):
    few, many = text(num_val_batches=2), text(num_val_batches=4)
    assert (few.num_val_batches, many.num_val_batches) == (2, 4)
    assert equal(few.batch("val", 1), many.batch("val", 1))


def test_a_worker_process_gets_the_same_batches(text):
    data = text(packing=True)
    sent = pickle.dumps(data)
    assert equal(pickle.loads(sent).batch("train", 3), data.batch("train", 3))
    assert len(pickle.dumps(data._cache.streams)) < 2000  # the map is opened again, not copied


def test_label_bytes_leave_out_separators_and_ignored_labels(text):
    labels = torch.tensor([[97, SEPARATOR, IGNORED_LABEL], [0, 255, IGNORED_LABEL]])
    assert text().num_label_bytes(labels) == 3
    bpe = text(tokenizer="bpe")
    (encoded,) = bpe._cache.tokenizer.encode_pieces([WORDS.encode()])
    labels = torch.tensor([*encoded.tolist(), bpe.vocab_size - 1, IGNORED_LABEL])[None]
    assert len(encoded) < len(WORDS)
    assert bpe.num_label_bytes(labels) == len(WORDS.encode())


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_decode_shows_text_separators_and_tokens_past_the_vocabulary(text, tokenizer):
    data = text(tokenizer=tokenizer)
    pieces = [b"", "naïve 漢字".encode(), b""]
    tokens = np.concatenate(list(data._cache.tokenizer.encode_pieces(pieces))).tolist()
    assert data.decode(tokens) == "<|end|>naïve 漢字<|end|>"
    assert data.decode(tokens[:-2]).startswith("<|end|>naïve")
    # a model's vocabulary is rounded up to a multiple of 64 and may draw these
    assert data.decode([data.vocab_size, data.vocab_size + 40]) == "\ufffd\ufffd"
    assert data.decode([]) == ""


def test_decode_replaces_half_a_character(text):
    assert text().decode(list("漢".encode())[:2] + [97]) == "\ufffda"


def test_bpe_is_trained_on_training_files_only(tmp_path):
    names = [f"word{letter}" for letter in "abcdefghijklmnopqrst"]
    for name in names:
        (tmp_path / name).write_text(f" {name}" * 40)
    data = Text(8, 2, 0, 1, path=str(tmp_path), tokenizer="bpe", cache_dir=str(tmp_path / "cache"))
    held_out = data.decode(stream(data, "val").tolist())
    learned = data._cache.tokenizer.spellings
    assert {name for name in names if f" {name}".encode() not in learned} == {
        name for name in names if name in held_out
    }


def test_a_large_corpus_trains_its_vocabulary_on_a_sample_and_says_so(
    text, tmp_path, monkeypatch, caplog
):
    whole = text(tokenizer="bpe")
    monkeypatch.setattr(choice, "BPE_SAMPLE_BYTES", 5000)
    caplog.set_level("INFO")
    data = text(tokenizer="bpe", cache_dir=str(tmp_path))
    assert data.vocab_size < whole.vocab_size
    spelled = [len(data._cache.tokenizer.spellings[t]) for t in stream(data, "train")]
    assert f"one piece of text in every {-(-sum(spelled) // 5000)}," in caplog.text
    assert f"gives {data.vocab_size} tokens, not 8192" in caplog.text


@pytest.mark.parametrize("packing", [False, True])
def test_baseline_is_near_for_bytes_and_bpe_and_far_below_chance(text, packing):
    figures = [
        text(tokenizer=tokenizer, packing=packing, num_val_batches=100).baseline()
        for tokenizer in ("bytes", "bpe")
    ]
    (of_bytes,), (of_bpe,) = (tuple(figure.values()) for figure in figures)
    assert figures[0].keys() == {"val/bits_per_byte_bigram"}
    assert 1 < of_bytes < 5
    # the same held-out text but for the end of the stream that fills no row
    assert of_bpe == pytest.approx(of_bytes, rel=0.02)


def test_baseline_is_the_bits_of_the_scored_labels_over_their_bytes(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("ab" * (50 + number))
    data = Text(16, 4, 0, 1, path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    tokens = stream(data, "train")
    num_train, num_pairs = (tokens == SEPARATOR).sum() - 1, (tokens == 97).sum()
    after = {  # bits of (symbol, next symbol), counted by hand
        (97, 98): -np.log2((num_pairs + 1) / (num_pairs + 257)),
        (98, 97): -np.log2((num_pairs - num_train + 1) / (num_pairs + 257)),
        (98, 256): -np.log2((num_train + 1) / (num_pairs + 257)),
        (256, 97): -np.log2((num_train + 1) / (num_train + 257)),
    }
    bits = num_bytes = 0
    for batch in (data.batch("val", step) for step in range(data.num_val_batches)):
        pairs = torch.stack((batch.tokens_BM, batch.labels_BM)).flatten(1).T.tolist()
        bits += sum(after[token, label] for token, label in pairs)
        num_bytes += sum(label != SEPARATOR for _, label in pairs)
    assert data.baseline()["val/bits_per_byte_bigram"] == pytest.approx(bits / num_bytes)

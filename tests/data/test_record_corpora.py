"""Corpora with record files and compressed files: documents, splits, copies and refusals."""

from __future__ import annotations

import gzip
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpus_formats import COMPRESS, MAKE
from xftrain.data.tokens import choice
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.duplicates import DuplicateCounter
from xftrain.errors import ConfigError

SEPARATOR = 256
NAMES = [a + b for a in "abcde" for b in "klmnopqr"]
TEXTS = [f"record {number} naïve words\n" * (1 + number % 7) for number in range(60)]


def lines(texts, key="text"):
    return "".join(json.dumps({key: text}) + "\n" for text in texts)


def documents(cache, split):
    stream = cache.streams[split]
    places = stream.boundaries.tolist()
    assert places == (stream.tokens == SEPARATOR).nonzero()[0].tolist()
    pairs = zip(places[:-1], places[1:], strict=True)
    found = [bytes(stream.tokens[a + 1 : b].tolist()).decode() for a, b in pairs]
    assert len(found) == cache.documents[split]
    return found


def both(cache):
    return documents(cache, "train") + documents(cache, "val")


def test_every_format_and_compression_gives_the_same_documents(tmp_path, cache_dir):
    expected = None
    for name, make in MAKE.items():
        for ending, compress in COMPRESS.items():
            path = tmp_path / (name + ending)
            path.write_bytes(compress(make(TEXTS)))
            cache = prepare(str(path), text_key="meta.text", cache_dir=str(cache_dir))
            found = documents(cache, "train"), documents(cache, "val")
            expected = expected or found
            assert found == expected and sorted(sum(found, [])) == sorted(TEXTS)


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_text_is_the_same_document_compressed_or_not(tmp_path, cache_dir, ending):
    text = "naïve 漢字 line\n" * 9000 + "without an end"
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(COMPRESS[ending](text.encode()))
    cache = prepare(str(path), tokenizer="bytes", cache_dir=str(cache_dir))
    (train,), (val,) = documents(cache, "train"), documents(cache, "val")
    assert train + val == text and abs(len(val) / len(text) - 0.1) < 0.01
    (tmp_path / "b.txt").write_text("another text")
    whole = prepare(str(tmp_path), cache_dir=str(cache_dir))
    assert sorted(both(whole)) == sorted([text, "another text"])


def test_a_compressed_copy_of_a_text_is_a_copy(tmp_path, cache_dir):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number} words")
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(b"%d words" % number))
    cache = prepare(str(tmp_path), cache_dir=str(cache_dir))
    assert len(both(cache)) == 4 and cache.skipped == {"repeated": 4}


def test_compressed_files_that_are_no_text_are_named(tmp_path, cache_dir):
    (tmp_path / "a.txt").write_text("some words")
    whole = gzip.compress(b"more words " * 99)
    contents = {"cut": whole[:-9], "binary": gzip.compress(b"\0"), "none": gzip.compress(b"")}
    for name, content in (contents | {"no": b"plain"}).items():
        (tmp_path / f"{name}.txt.gz").write_bytes(content)
    cache = prepare(str(tmp_path), cache_dir=str(cache_dir))
    assert cache.skipped == {"damaged": 2, "binary": 1, "empty": 1}
    assert "2 damaged files, 1 empty file: binary.txt.gz, cut.txt.gz, no.txt.gz" in cache.summary


documents_of_a_corpus = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    min_size=2,
    max_size=30,
    unique=True,
)


@settings(max_examples=15, deadline=None)
@given(documents_of_a_corpus, st.sampled_from([0.01, 0.1, 0.5, 0.99]), st.data())
def test_both_splits_have_documents_and_no_copy_is_on_both_sides(
    tmp_path_factory, texts, fraction, data
):
    folder = tmp_path_factory.mktemp("records")
    copies = data.draw(st.lists(st.sampled_from(texts), max_size=10))
    (folder / "a.jsonl").write_text(lines(texts + copies))
    cache = prepare(str(folder), val_fraction=fraction, cache_dir=str(folder / "cache"))
    train, val = documents(cache, "train"), documents(cache, "val")
    assert sorted(train + val) == sorted(texts + copies)
    assert train and val and not set(train) & set(val)
    assert cache.num_duplicates == len(copies)


def test_a_record_keeps_its_side_when_others_come_or_go(tmp_path, cache_dir):
    (tmp_path / "a.jsonl").write_text(lines(TEXTS))
    held_out = set(documents(prepare(str(tmp_path), cache_dir=str(cache_dir)), "val"))
    assert 1 < len(held_out) < 20
    (tmp_path / "a.jsonl").write_text(lines(["first", *TEXTS[10:]]))
    (tmp_path / "b.txt").write_text("a text")
    after = set(documents(prepare(str(tmp_path), cache_dir=str(cache_dir)), "val"))
    assert after & set(TEXTS) == held_out & set(TEXTS[10:])


def test_files_of_val_path_are_held_out_and_not_trained_on(tmp_path, cache_dir):
    (tmp_path / "all").mkdir()
    for number in range(5):
        (tmp_path / "all" / f"{number}.jsonl").write_text(lines(TEXTS[number * 10 :][:10]))
    (tmp_path / "copy.jsonl").write_text(lines(TEXTS[:10]))
    all_files = str(tmp_path / "all")
    cache = prepare(
        [all_files, str(tmp_path / "copy.jsonl")],
        val_path=[f"{all_files}/0.jsonl", f"{all_files}/[12].jsonl"],
        cache_dir=str(cache_dir),
    )
    assert documents(cache, "val") == TEXTS[:30] and documents(cache, "train") == TEXTS[30:50]
    assert cache.skipped == {"repeated": 4}  # three that are held out, and the copy of one
    sides = [
        {"path": f"{all_files}/{a}.jsonl", "val_path": f"{all_files}/{b}.jsonl"}
        for a, b in (("0", "1"), ("1", "0"), ("0", "[12]"))
    ]
    assert len({prepare(**one, cache_dir=str(cache_dir)).folder for one in sides}) == 3


def refused(path, cache_dir, **options):
    with pytest.raises(ConfigError) as error:
        prepare(str(path), cache_dir=str(cache_dir), **options)
    assert "\n" not in str(error.value) and not list(cache_dir.glob(".*.shards"))
    return str(error.value)


def test_a_key_that_no_record_has_is_refused_with_the_keys_of_the_first(tmp_path, cache_dir):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 1, "meta": {"a": 1, "b\x1b": 2}}) + "\n")
    said = refused(tmp_path, cache_dir)
    assert said.startswith("data.text_key must be the key of the text in a record, got 'text'")
    assert said.endswith(r"the first record has the keys id, meta.a, meta.b\x1b.")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.csv").write_text("id,body\n1,words\n")
    assert refused(tmp_path, cache_dir).endswith("has the keys id, body.")


def test_a_table_without_text_among_texts_is_named_in_a_warning(tmp_path, cache_dir, caplog):
    for number in range(9):
        (tmp_path / f"{number}.py").write_text(f"print({number})\n" * 99)
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "package.json").write_text(json.dumps({"name": "x"}, indent=2))
    cache = prepare(str(tmp_path), cache_dir=str(cache_dir))
    assert sum(cache.documents.values()) == 9
    assert cache.skipped == {"without the key": 1, "JSON without lines": 1}
    assert "which no record has; the first record has the keys a, b." in caplog.text
    assert "without the column data.text_key: package.json, numbers.csv" in caplog.text
    assert "a JSON file must hold one record a line" in caplog.text


def test_one_document_or_none_cannot_be_split(tmp_path, cache_dir):
    (tmp_path / "a.jsonl").write_text(lines(["one"] * 3))
    said = refused(tmp_path, cache_dir)
    assert said.startswith("data.path must hold text for validation, got one document alone")
    (tmp_path / "a.jsonl").write_text("{}\n[]\n")
    assert "the keys of an empty record" in refused(tmp_path, cache_dir)
    (tmp_path / "a.jsonl").write_text("words\n")
    assert "1 line that is no JSON" in refused(tmp_path, cache_dir)
    (tmp_path / "b.txt").write_text("words")
    said = refused(tmp_path / "b.txt", cache_dir, val_path=str(tmp_path / "a.jsonl"))
    assert said.startswith("data.val_path must hold text for validation, got none")


@pytest.mark.parametrize("sample_bytes", [1 << 20, 600])
def test_a_vocabulary_is_trained_on_training_records_alone(
    tmp_path, cache_dir, caplog, monkeypatch, sample_bytes
):
    monkeypatch.setattr(choice, "BPE_SAMPLE_BYTES", sample_bytes)
    caplog.set_level(logging.INFO)
    (tmp_path / "a.jsonl").write_text(lines([f" word{name} " * 30 for name in NAMES]))
    options = {"tokenizer": "bpe", "vocab_size": 600, "cache_dir": str(cache_dir)}
    cache = prepare(str(tmp_path), **options)
    learned = b" ".join(cache.tokenizer.spellings)
    held_out = cache.tokenizer.decode(cache.streams["val"].tokens.tolist())
    unknown = {name for name in NAMES if f"word{name}".encode() not in learned}
    assert {name for name in NAMES if f"word{name}" in held_out} <= unknown
    is_sampled = sample_bytes == 600
    assert ("the vocabulary is trained on" in caplog.text) is is_sampled
    assert (len(unknown) > 15) is is_sampled


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 20))
def test_copies_are_counted(numbers, block):
    counter = DuplicateCounter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xftrain.data.tokens.duplicates._BLOCK", block)
        for number in numbers:
            counter.add(number << 58)
        assert counter.count() == len(numbers) - len(set(numbers))


def test_memory_for_copies_is_limited(monkeypatch):
    monkeypatch.setattr("xftrain.data.tokens.duplicates._BLOCK", 10)
    counter = DuplicateCounter(max_hashes=20)
    for number in [*range(100), *range(5)]:
        counter.add(number)
    assert counter.count() == 5 and counter.is_full
    assert sum(run.size for run in counter._runs) <= 30

"""Documents in JSON lines, CSV, Parquet and Arrow files, plain, compressed, whole and damaged."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.corpus_formats import COMPRESS, MAKE, jsonl
from xftrain.data.corpus.formats import format_of
from xftrain.data.corpus.records import read_records
from xftrain.data.corpus.skipped import Skipped

TEXTS = ["one", 'zwei\nZeilen, "quoted"', "", "drei \U0001f600", "x" * 3000]


def read(name: str, content: bytes, key: str = "meta.text") -> tuple[list[str], Skipped]:
    skipped = Skipped()
    found = list(read_records(io.BytesIO(content), format_of(name), key, name, skipped))
    return found, skipped


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", MAKE)
def test_every_format_gives_the_same_documents_in_every_compression(name, ending) -> None:
    found, skipped = read(name + ending, COMPRESS[ending](MAKE[name](TEXTS)))
    assert found == TEXTS and not skipped.total()


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", MAKE)
def test_a_file_that_is_cut_off_is_counted_and_ends_nothing(name, ending) -> None:
    texts = [f"document {number} " * 40 for number in range(600)]
    content = COMPRESS[ending](MAKE[name](texts))
    found, skipped = read(name + ending, content[: len(content) * 2 // 3])
    is_seen = name != "a.csv" or ending != ""  # a row of CSV is whole wherever it ends
    whole = found if is_seen else found[:-1]
    assert whole == texts[: len(whole)] and len(found) < len(texts)
    assert skipped.total() == is_seen


@given(content=st.binary(max_size=300), name=st.sampled_from([*MAKE, "a.csv.gz", "a.jsonl.zst"]))
def test_no_content_ends_a_run(content: bytes, name: str) -> None:
    found, _ = read(name, content)
    assert all(isinstance(text, str) for text in found)


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))), seed=st.randoms())
def test_a_damaged_line_changes_no_other_document(texts: list[str], seed) -> None:
    lines = jsonl(texts).splitlines(keepends=True)
    bad = [b"{\n", b"[1]\n", b"\xff\xfe\n", b'{"meta": 3}\n', b'{"meta": {"text": 3}}\n', b"null\n"]
    bad.append(b'{"meta": {"text": "\\ud800"}}\n')
    for line in bad:
        lines.insert(seed.randint(0, len(lines)), line)
    found, skipped = read("a.jsonl", b"".join(lines))
    assert found == texts and skipped.total() == len(bad)


def test_a_key_that_is_missing_is_counted(tmp_path) -> None:
    for name, make in MAKE.items():
        found, skipped = read(name, make(TEXTS), "other")
        assert found == [] and skipped.total() == (len(TEXTS) if "json" in name else 1)


def test_a_column_may_have_dots_in_its_name() -> None:
    made = io.BytesIO()
    pq.write_table(pa.table({"meta.text": ["a", None]}), made)
    found, skipped = read("a.parquet", made.getvalue())
    assert found == ["a"] and skipped == {"record without text": 1}


def test_a_row_in_another_encoding_is_skipped_alone() -> None:
    content = b"meta.text,id\r\nfine,1\r\nk\xf6ln,2\r\n\xc3\xb6,3\r\n"
    found, skipped = read("a.csv", content)
    assert found == ["fine", "ö"] and skipped.total() == 1


def test_a_line_that_is_too_long_is_skipped_alone(monkeypatch) -> None:
    monkeypatch.setattr("xftrain.data.corpus.records.MAX_RECORD_BYTES", 100)
    found, skipped = read("a.jsonl", jsonl(["a", "b" * 1000, "c"]))
    assert found == ["a", "c"] and skipped == {"record that is too long": 1}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("value", [[{"meta": {"text": "a"}}] * 3, [1], {"meta": [1, 2]}, []])
def test_a_file_that_is_one_json_value_is_skipped_as_a_whole(value, indent) -> None:
    found, skipped = read("a.json", json.dumps(value, indent=indent).encode())
    is_record = isinstance(value, dict) and indent is None
    expected = "record without text" if is_record else "JSON without lines"
    assert found == [] and skipped == {expected: 1}


def test_a_list_with_a_record_a_line_is_skipped_as_a_whole() -> None:
    content = b'[\n{"meta": {"text": "a"}},\n{"meta": {"text": "b"}}\n]\n'
    assert read("a.json", content) == ([], {"JSON without lines": 1})


def test_the_keys_of_the_first_record_without_text_are_found() -> None:
    for name, make in MAKE.items():
        keys: list[str] = []
        file = io.BytesIO(make(TEXTS))
        list(read_records(file, format_of(name), "other", name, Skipped(), keys))
        assert "meta.text" in keys or keys == ["id", "meta"], name


def test_formats_by_name() -> None:
    said = {name: format_of(name) for name in ("A.JSONL.GZ", "a.tsv", "a.txt.zst", "a", "b.gz")}
    assert [(f.kind, f.compression, f.delimiter) for f in said.values()] == [
        ("jsonl", "gz", ","),
        ("csv", None, "\t"),
        ("text", "zst", ","),
        ("text", None, ","),
        ("text", "gz", ","),
    ]

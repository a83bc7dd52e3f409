"""Whatever is in a file, the documents of the other files stay as they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpus_formats import COMPRESS, MAKE
from tests.data.listed import list_files
from xftrain.data.tokens.content import DigestRecord, distinct_texts
from xftrain.data.tokens.corpus import Corpus
from xftrain.data.tokens.documents import DocumentReader

NOWHERE = Path("/nonexistent")
GOOD = [f"good document {number} " * 5 for number in range(5)]
TEXTS = [f"document {number} naïve " * 7 for number in range(30)]
KINDS = {name: make(TEXTS) for name, make in MAKE.items()} | {"a.txt": TEXTS[0].encode()}
WHOLE = {
    name + ending: compress(content)
    for name, content in KINDS.items()
    for ending, compress in COMPRESS.items()
}
OTHERS = {f"b{name}": make(GOOD) for name, make in MAKE.items()} | {"z.txt": GOOD[0].encode()}

damage = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.none()),
    st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("remove"), st.integers(0, 1 << 20), st.integers(1, 50)),
    st.tuples(st.just("replace"), st.none(), st.binary(max_size=60)),
)


def damaged(content, damages):
    for how, place, value in damages:
        at = (place or 0) % (len(content) + 1)
        if how == "flip":
            content = content[:at] + bytes(b ^ value for b in content[at:][:1]) + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "insert":
            content = content[:at] + value + content[at:]
        elif how == "remove":
            content = content[:at] + content[at + value :]
        else:
            content = value
    return content


def read(files):
    """The documents of each file, and what is skipped."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        listed, skipped = list_files(Path(folder), leave_out=NOWHERE)
        texts = distinct_texts(listed, DigestRecord(NOWHERE), skipped)
        reader = DocumentReader(Corpus(texts, [], "meta.text", 0.5))
        found, document = [], b""
        for split, piece in reader.pieces():
            document += piece
            if not piece:
                found.append((split, document))
                document = b""
    skipped.add_all(reader.skipped)
    return found, skipped


EXPECTED, _ = read(OTHERS)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(sorted(WHOLE)), st.lists(damage, min_size=1, max_size=4))
def test_a_damaged_file_changes_no_document_of_another(name, damages):
    content = damaged(WHOLE[name], damages)
    found, skipped = read({name: content} | OTHERS)
    # files come in the order of their names, and the damaged one is the first
    assert found[len(found) - len(EXPECTED) :] == EXPECTED
    others = [document for _, document in found[: len(found) - len(EXPECTED)]]
    if "json" in name and not name.endswith(("json", "jsonl")) and len(others) < len(TEXTS):
        assert skipped.total()
    for document in others:
        document.decode()

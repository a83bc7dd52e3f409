"""A document of ordinary length is encoded as a whole, however a corpus is cut into chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.built_tokenizers import built_json
from xftrain.data.tokens import chunks, pretrained
from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer_json import parse_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Pretrained(parse_tokenizer(built_json("llama2")), 2)


def encoded(chunk, split, tokenizer):
    continues = chunk.continues == split
    parts = tokenizer.encode_pieces(chunk.pieces[split], continues=continues)
    return [token for part in parts for token in part.tolist()]


@given(
    documents=st.lists(
        st.tuples(st.sampled_from(["train", "val"]), st.integers(1, 60)), min_size=1, max_size=30
    )
)
def test_the_tokens_of_a_document_do_not_depend_on_chunks(tokenizer, documents):
    texts = [(split, f"fox {n} " * n) for split, n in documents]
    pieces = []
    for split, text in texts:
        content = text.encode()
        pieces += [(split, content[at : at + 50]) for at in range(0, len(content), 50)]
        pieces.append((split, b""))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunks, "CHUNK_BYTES", 700)
        made = list(chunks.chunks_of(pieces))
    for split in ("train", "val"):
        own = [text for of, text in texts if of == split]
        expected = [2] if own else []
        for text in own:
            expected += [*tokenizer.encode(text), 2]
        assert sum((encoded(chunk, split, tokenizer) for chunk in made), []) == expected
    assert not any(chunk.continues for chunk in made)  # none of this length is in two chunks


def test_a_long_document_is_in_several_chunks_and_gets_no_blank_within(tokenizer, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 700)
    monkeypatch.setattr(chunks, "WHOLE_BYTES", 100)
    monkeypatch.setattr(pretrained, "WHOLE_BYTES", 100)
    text = "fox\n" * 500
    pieces = [("val", text[at : at + 50].encode()) for at in range(0, len(text), 50)]
    made = list(chunks.chunks_of([*pieces, ("val", b""), ("train", b"fox"), ("train", b"")]))
    assert len(made) > 3 and all(chunk.continues == "val" for chunk in made[1:])
    tokens = sum((encoded(chunk, "val", tokenizer) for chunk in made), [])
    assert tokenizer.decode(tokens[1:-1]) == text
    assert encoded(made[-1], "train", tokenizer) == [2, *tokenizer.encode("fox"), 2]

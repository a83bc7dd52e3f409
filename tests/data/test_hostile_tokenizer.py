"""A tokenizer.json from anyone is read or refused, and never ends the process."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.built_tokenizers import ALL, built_json
from xftrain.data.tokens.pretrained import Pretrained
from xftrain.data.tokens.tokenizer_files import read_pretrained
from xftrain.errors import ConfigError

TEXT = "the quick </s> fox \u6f22 <0x0A>\n"
VALUES = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 2**31, 1e300, "", "a", "\ud800", "(", "(a+)+$", "\0", [], {}, [[]]]
    ),
    st.sampled_from(
        [
            {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 300},
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 300}] * 3},
            {"type": "Metaspace", "replacement": "long", "prepend_scheme": "always"},
            {"type": "ByteLevel"},
        ]
    ),
)


def places_in(value):
    """All containers of a JSON value with the keys of their parts; of long ones, only a few."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys[:12]:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places_in(value[key])


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_file_is_read_or_refused(tmp_path_factory, name, data):
    content = copy.deepcopy(json.loads(built_json(name)))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(list(places_in(content))))
        if data.draw(st.booleans()):
            container[key] = copy.deepcopy(data.draw(VALUES))
        else:
            del container[key]
    text = json.dumps(content)
    try:
        tokenizer = Pretrained.from_json(text, 2, 500)
        tokenizer.digest()
        tokenizer.to_json().encode()
        tokenizer.decode(tokenizer.encode(TEXT))
    except (ValueError, ConfigError):
        pass
    path = tmp_path_factory.getbasetemp() / f"{name}.json"
    path.write_text(text)
    try:
        read_pretrained(str(path))
    except ConfigError as error:
        assert str(error).isprintable()


def with_normalizers(*steps):
    content = json.loads(built_json("gpt2"))
    content["normalizer"] = {"type": "Sequence", "normalizers": list(steps)}
    return json.dumps(content)


def test_normalizers_that_lengthen_a_text_without_end_are_refused():
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    with pytest.raises(ValueError, match="in more steps than any known tokenizer"):
        Pretrained.from_json(with_normalizers(*[double] * 40), 0, 313)
    assert Pretrained.from_json(with_normalizers(double), 0, 313).encode("a")


def test_a_regular_expression_without_end_is_one_sentence():
    content = json.loads(built_json("gpt2"))
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    content["pre_tokenizer"] = pattern | {"invert": False}
    tokenizer = Pretrained.from_json(json.dumps(content), 0, 313)
    with pytest.raises(ConfigError, match="cannot encode a text: .*retry-limit"):
        tokenizer.encode("a" * 40 + "b")

"""What a checkpoint says of its run: small, of the types that are saved, whoever made the file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.reliability.test_checkpoint_values import Content, _set
from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.checkpoint.header import header
from xftrain.commands.saved_choices import SavedChoices, saved_choices
from xftrain.data.tokens.vocabulary import rebuild
from xftrain.errors import ConfigError
from xftrain.folders.run_folder import RunFolder
from xftrain.train.same_run import differences, with_digests


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Content:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return read_checkpoint(last(run_dir))


def _doubled(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {"a": 0, "b": 0}
    for _ in range(depth):
        node = {"a": node, "b": node}
    return node


CONFIG = ("xftrain", "config")
HOSTILE: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a key of dots": ((*CONFIG, "." * 200_000), 1, "a key that is too long"),
    "a long group": ((*CONFIG, "k" * 2**20), {str(n): 0 for n in range(99)}, "a key that is too"),
    "long groups": ((*CONFIG, "k" * 200), {str(n): 0 for n in range(9000)}, "more than 1,048,576"),
    "dictionaries twice": ((*CONFIG, "zz"), _doubled(15), "more than 1,048,576 characters"),
    "a long value": ((*CONFIG, "seed"), ["k" * 2**20] * 2, "more than 1,048,576 characters"),
    "a text as a digest": (("xftrain", "environment"), {"A": "${oc.env:B}" * 9}, "environment"),
    "digests in a list": (("xftrain", "environment"), ["abc"], "environment"),
    "numbers as digests": (("xftrain", "environment"), {"A": 123}, "environment"),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_description_that_grows_is_refused_when_it_is_read(tmp_path, content, kind):
    keys, value, why = HOSTILE[kind]
    path = tmp_path / "hostile.ckpt"
    torch.save(_set(*keys)(value, content), path)
    assert header(path) is None
    with pytest.raises(ConfigError, match=why) as refused:
        read_checkpoint(path)
    assert len(str(refused.value)) < 500


def test_a_digest_is_put_behind_its_variable_once():
    texts = {"key": "${oc.env:A}, ${oc.env:B} and ${oc.env:C}", "list": ["${oc.env:A}"]}
    told = with_digests(texts, {"A": "${oc.env:B}", "B": "0a1"})
    assert told["key"] == "${oc.env:A} (${oc.env:B}), ${oc.env:B} (0a1) and ${oc.env:C}"
    assert told["list"] == ["${oc.env:A} (${oc.env:B})"]


def test_a_long_value_is_shown_in_part():
    (said,) = differences({"tags": ["x"] * 10_000}, {"tags": []}).values()
    assert said.startswith("tags ['x', 'x'") and said.endswith("... -> []") and len(said) < 300


TYPES: dict[str, tuple[tuple[str, ...], Any]] = {
    "a run of texts": (("callbacks", "RunStart", "run"), ["x"]),
    "a validation of texts": (("callbacks", "RunStart", "validation"), ["x"]),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", TYPES)
def test_another_type_is_not_made_a_text_of(tmp_path, content, kind):
    keys, value = TYPES[kind]
    torch.save(_set(*keys)(value, content), tmp_path / "hostile.ckpt")
    with pytest.raises(ConfigError, match="cannot be resumed"):
        run(tmp_path / "run", f"ckpt={tmp_path / 'hostile.ckpt'}", "max_steps=2")


@pytest.mark.fault("hostile checkpoint")
def test_choices_that_are_no_names_are_passed_over(tmp_path, content):
    held = {"attn": "x" * 9999, "matmul": [7], "ran_as": {"torch": ["x"], "device": "cpu", 3: "x"}}
    torch.save(_set("callbacks", "Choices")(held, content), tmp_path / "hostile.ckpt")
    folder = RunFolder(tmp_path)
    held = saved_choices(tmp_path / "hostile.ckpt", None, folder)
    assert held == SavedChoices(ran_as={"device": "cpu"})


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", [None, 3, ["bytes"]])
def test_a_vocabulary_whose_kind_is_no_text_is_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match="a damaged description"):
        rebuild({"kind": kind, "vocab_size": 64, "digest": "x"}, tmp_path)

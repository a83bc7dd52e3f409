"""What a variable of the environment held is found in any form that a text has it in."""

from __future__ import annotations

import json
import shlex
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.config.compose import compose
from xftrain.utils import redaction
from xftrain.utils.printable import one_line
from xftrain.utils.read_variables import READ
from xftrain.utils.redaction import hidden, hidden_throughout


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch):
    """Sets what the configuration read."""
    monkeypatch.setattr(READ, "values", {})
    monkeypatch.setattr(READ, "decoded", {})

    def hold(**values: str) -> None:
        READ.values.clear()
        READ.values.update(values)

    return hold


@pytest.mark.parametrize(
    "value", ["pw7q9", "s3c", "x9", "k", "p@ss word", "123456", "Bücher-7", "!?%&", " #!$% "]
)
@pytest.mark.parametrize("text", ["{}", "KeyError: '{}'", "postgres://me:{}@host/db", "a={}, b=1"])
def test_a_value_is_hidden_however_short(held, value, text):
    held(SECRET=value)
    assert hidden(text.format(value)) == text.format("${oc.env:SECRET}")


@pytest.mark.parametrize(
    "value",
    ["1", "0.5", "-3", "1e-4", "true", "None", "null", "sdpa", "cpu", "max_steps", "/", "/..", ""],
)
def test_what_cannot_be_a_secret_stays(held, value):
    held(SEED=value)
    text = f"seed {value} of sdpa on cpu, max_steps true None null 0.5 /tmp/../run 1e-4 -3"
    assert hidden(text) == text


def test_a_short_value_is_looked_for_as_a_word_of_its_own(held):
    held(A="ab", B="xyz", N="123456")
    assert hidden("ab cab abc xyz-xyzzy 0.1234567 123456") == (
        "${oc.env:A} cab abc ${oc.env:B}-xyzzy 0.1234567 ${oc.env:N}"
    )
    assert hidden("cab") == "cab" and hidden("abc") == "abc"  # a whole text


def test_no_part_of_a_longer_value_is_left_after_a_shorter_one(held):
    for names in ({"A": "hunter", "B": "hunter2-hunter2"}, {"B": "hunter2-hunter2", "A": "hunter"}):
        held(**names)
        assert hidden("of hunter2-hunter2 and hunter") == "of ${oc.env:B} and ${oc.env:A}"
    held(A="abcd-efgh", B="efgh-ijkl-mnop")  # the shorter one begins before
    assert hidden("<abcd-efgh-ijkl-mnop>") == "<${oc.env:B}>"


def test_a_text_that_has_names_already_stays(held):
    held(TOKEN="TOKEN", OTHER="oc.env")
    assert hidden(hidden("is TOKEN")) == "is ${oc.env:TOKEN}"
    held(TOKEN="KEN}", OTHER="${oc.env:TO")  # at the end of a name, and at its beginning
    assert hidden("is ${oc.env:TOKEN} of it") == "is ${oc.env:TOKEN} of it"


def test_each_line_of_a_value_is_hidden(held):
    held(KEY="-----BEGIN-----\nfirst-line-xyz\n  second-line-abc\n7\n")
    said = hidden("KeyError: second-line-abc\n  first-line-xyz, 7")
    assert said == "KeyError: ${oc.env:KEY}\n  ${oc.env:KEY}, 7"


@given(st.text(min_size=4, max_size=30))
def test_no_spelling_of_a_value_gets_through(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(READ, "values", {"SECRET": value})
        if not redaction._is_secret(value):
            return
        for spell in (
            str,
            repr,
            json.dumps,
            one_line,
            shlex.quote,
            quote,
            quote_plus,
            lambda text: repr(repr(text)),
            lambda text: repr(KeyError(text)),
            lambda text: str({"token": text}),
            lambda text: json.dumps(text, ensure_ascii=False),
        ):
            before = spell(value)
            assert "${oc.env:SECRET}" in hidden(f"<{before}>"), (spell, before)
            assert before not in hidden(f"<{before}>")


def test_a_whole_structure_is_cleared_and_stays_valid(held):
    held(SECRET='qu"ote\\d')
    made = hidden_throughout({"a": ['qu"ote\\d', 1, None], 'qu"ote\\d': {"b": ("x", 2.5)}})
    assert made == {"a": ["${oc.env:SECRET}", 1, None], "${oc.env:SECRET}": {"b": ["x", 2.5]}}


def test_a_default_is_no_secret_and_a_decoded_text_is_one(held, monkeypatch):
    monkeypatch.delenv("XFTRAIN_TEST_RUNS", raising=False)
    monkeypatch.setenv("XFTRAIN_TEST_LIST", "[alpha-7, beta-8]")
    cfg = compose("tags='${oc.decode:${oc.env:XFTRAIN_TEST_LIST}}'")
    assert list(cfg.tags) == ["alpha-7", "beta-8"]
    assert compose("ckpt=${oc.env:XFTRAIN_TEST_RUNS,outputs}").ckpt == "outputs"
    assert hidden("outputs/beta-8") == "outputs/${oc.env:XFTRAIN_TEST_LIST}"


def test_no_file_of_a_run_has_a_value_that_its_folder_is_named_after(
    command, tmp_path, held, monkeypatch
):
    # Hydra resolves the folder in .hydra/hydra.yaml
    monkeypatch.setenv("XFTRAIN_TEST_TOKEN", "tr0ub4dor")
    assert command("hydra.run.dir='runs/${oc.env:XFTRAIN_TEST_TOKEN}'").code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4 and "hydra.yaml" in {path.name for path in files}
    assert [path.name for path in files if b"tr0ub4dor" in path.read_bytes()] == []


def test_a_folder_of_a_sweeps_job_is_not_named_after_a_secret(command, jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("XFTRAIN_TEST_TOKEN", "tr0ub4dor")
    command("-m", "tags=[${oc.env:XFTRAIN_TEST_TOKEN}],[b]", "model.ffn=gelu", "hydra.sweep.dir=s")
    assert len(jobs) == 2
    assert [str(path) for path in tmp_path.rglob("*") if "tr0ub4dor" in str(path)] == []

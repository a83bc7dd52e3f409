"""Whatever is wrong with an override or a configuration is said in one sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xftrain.config.compose import compose, validate
from xftrain.config.composition_errors import sentence
from xftrain.config.overrides import (
    refuse_long_names,
    refuse_non_utf8,
)
from xftrain.config.registry import option_names
from xftrain.errors import ConfigError

BACKENDS = ", ".join(option_names("model/attn"))


def _refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        validate(compose(*overrides))
    return str(refused.value)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("seq=abc", "seq must be an integer >= 1, got 'abc'."),
        ("seq=-1", "seq must be an integer >= 1, got -1."),
        ("seq=1e3", "seq must be an integer >= 1, got 1000.0."),
        ("seed=-1", "seed must be an integer >= 0 and <= 4294967295, got -1."),
        ("max_steps=0", "max_steps must be an integer >= 1, got 0."),
        ("compile=abc", "compile must be true or false or cudagraphs, got 'abc'."),
        ("tags=x", "tags must be a list of values, each a string, got 'x'."),
        ("seq=${nope}", "seq: Interpolation key 'nope' not found."),
        ("model.num_layers=0", "model.num_layers must be an integer >= 1, got 0."),
        ("data.vocab_size=-4", "data.vocab_size must be an integer >= 2, got -4."),
        ("data.batch_size=0", "data.batch_size must be an integer >= 1 or null, got 0."),
        (
            "trainer.precision=fp7",
            "trainer.precision must be one of auto, 32-true, 16-mixed, bf16-mixed, bf16-true, "
            "got 'fp7'.",
        ),
        ("nope=1", "nope is not a key of the configuration, which has seq, batch_tokens, "),
        ("+nope=1", "nope is not a key of the configuration, which has seq, batch_tokens, "),
        ("model.atn=naive", "model.atn is not a key of model; did you mean model.attn?"),
        (
            "learning_rate=1",
            "learning_rate is not a key of the configuration: use optim.lr=<value>.",
        ),
        (
            "epochs=3",
            "epochs is not a key of the configuration: a run has no epochs; use "
            "max_steps=<optimizer steps>.",
        ),
        (
            "model.layers.local.window=8",
            "model.layers describes no local: name it in model.layers.pattern, and add it, as in "
            "+model.layers.local.bias={name:window,window:16}.",
        ),
        ("+model.nope=1", "model.nope is not a key of model, which has dim, "),
        ("model/atn=naive", "model.atn is not a group; did you mean model.attn?"),
        ("model.attn@x=naive", "model.attn@x is not a group; did you mean model.attn?"),
        ("model.attn.nope=1", "model.attn.nope is not a key of model.attn=auto, which has none."),
        ("+model.attn.nope=1", "model.attn.nope is not a key of model.attn=auto, which has none."),
        (
            "model.attn=xfomers",
            f"model.attn=xfomers: no such option; choose one of {BACKENDS} (nearest: xformers).",
        ),
        ("model.attn=3", f"model.attn=3: no such option; choose one of {BACKENDS}."),
        ("model=null", "model=null: no such option; choose one of "),
        ("callbacks=[default,nope]", "callbacks=nope: no such option; choose one of alibi, "),
        ("logger=[tensorboard,wanda]", "logger=wanda: no such option; choose one of csv, "),
        (
            "~model.attn",
            f"model.attn is missing; choose one of {BACKENDS}, as in model.attn=<option>.",
        ),
        ("model.attn=null", f"model.attn is missing; choose one of {BACKENDS}, "),
        ("~data", "data is missing; choose one of "),
        ("~model.dim", "model.dim has no value; set it to an integer >= 1."),
        (
            "model.attn=[naive,sdpa]",
            "model.attn takes one option, got [naive,sdpa]; to run one job for each, add -m and "
            "write model.attn=naive,sdpa.",
        ),
        ("model/attn=[naive,sdpa]", "model.attn takes one option, got [naive,sdpa]; "),
        ("loss=[auto,full]", "loss takes one option, got [auto,full]; "),
        ("+model.attn=sdpa", "model.attn is chosen twice; choose one option, without + or a list."),
        (
            "++model.attn=sdpa",
            "++model.attn=sdpa chooses an option of a group; leave out the ++.",
        ),
        (
            "model.attn=naive,sdpa",
            "model.attn=naive,sdpa has several values; add -m to run one job for each.",
        ),
        ("seq=range(1,3)", "seq=range(1,3) has several values; add -m to run one job for each."),
        (
            "ckpt=a=b.ckpt",
            "'ckpt=a=b.ckpt' cannot be read; a value that holds special characters needs quotes "
            "of its own, as in 'ckpt=\"...\"'.",
        ),
        ("seq", "'seq' is neither a flag nor of the form key=value."),
        ("hydra.job.nam=x", "hydra.job.nam is not a key of hydra.job; did you mean hydra.job.name"),
        ("model.bias=full", "model.bias=full lets next-token training see its answers; "),
        (
            "model.num_heads=5",
            "model.dim must be a multiple of model.num_heads, got 128 and 5; with this dim "
            "num_heads can be 1, 2, 4, 8, 16, 32, 64, 128.",
        ),
        (
            "data=text",
            "data.path has no value; set it to a string or a list of values, each a string.",
        ),
        ("ckpt=nowhere", "ckpt must be auto or an existing checkpoint file, got 'nowhere'."),
        ("optim.lr=nan", "optim.lr must be a number > 0 and finite, got nan."),
    ],
)
def test_a_wrong_override_is_one_sentence(typed, sentence):
    said = _refusal(typed)

    assert said.startswith(sentence)
    assert "\n" not in said


GARBAGE = [
    "",
    "null",
    "-1",
    "1.5",
    "[naive,sdpa]",
    "{a:1}",
    "a=b",
    "${seq}",
    "${.}",
    "???",
    "'",
    "[",
]


KEYS = ["seq", "model.attn", "model/attn", "model", "data.path", "tags", "optim.betas", "callbacks"]


@settings(max_examples=25)  # each composes: 0.15 s
@given(
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(KEYS),
    st.one_of(st.sampled_from(GARBAGE), st.text(max_size=6)),
)
def test_garbage_is_refused_with_a_sentence_or_right(sign, key, value):
    try:
        validate(compose(f"{sign}{key}={value}"))
    except ConfigError as error:
        assert "\n" not in str(error)


def test_a_text_that_is_not_utf_8_is_refused():
    refuse_non_utf8(["seq=8", "tags=[é]"])
    with pytest.raises(ConfigError, match="holds bytes that are not UTF-8"):
        refuse_non_utf8(["seq=8", "tags=[\udcff]"])


def test_names_of_files_are_short_and_values_may_be_long():
    long, groups = "x" * 241, {"model/attn", "callbacks"}
    refuse_long_names(
        [f"data.path={long}", f"data.path=a,{long}", f"model/attn={long[1:]}", long[1:]], groups
    )
    for override in (
        *(long, f"+{long}=1", f"{long}/a=1", f"model/{long}=1"),
        *(f"model/attn={long}", f"model.attn={long}", f"++model/attn@model.attn={long}"),
        f"~callbacks=[default,{long}]",
    ):
        with pytest.raises(ConfigError, match="at most 240 characters"):
            refuse_long_names(["seq=8", override], groups)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply: use fewer levels"),
        (MemoryError(), "does not fit in memory: use shorter values"),
    ],
)
def test_an_override_that_python_cannot_read_is_a_sentence(error, said):
    assert said in sentence(error)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("zzz/qqq=1", "zzz.qqq is not a group; choose one of callbacks, data, "),
        (
            "callbacks.zzz.x=1",
            "callbacks.zzz is not a key of callbacks, which has attention_pattern, ",
        ),
    ],
)
def test_where_no_name_is_near_all_are_listed(override, said):
    with pytest.raises(ConfigError) as refused:
        validate(compose(override))
    assert str(refused.value).startswith(said)

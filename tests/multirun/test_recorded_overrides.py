"""Overrides that a file brings: whatever their escapes, nothing but plain values comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.multirun import recorded_overrides
from xftrain.multirun.recorded_overrides import NotPlain, plain_overrides, same_overrides

CALLED: list[str] = []


def canary(*args: Any, **kwargs: Any) -> str:
    """A function that a hostile override tries to call, as a class or as a resolver."""
    CALLED.append("called")
    return "x"


@pytest.fixture(autouse=True)
def _resolver() -> Iterator[None]:
    CALLED.clear()
    OmegaConf.register_new_resolver("canary", canary, replace=True)
    yield
    OmegaConf.clear_resolver("canary")


def _escaped(text: str) -> str:
    """Escapes an unquoted value for Hydra's grammar."""
    for character in "\\{}[](),:= ":
        text = text.replace(character, "\\" + character)
    return text


def _jobs(overrides: list[str]) -> list[list[str]]:
    """Splits overrides into those of each job, with Hydra's sweeper."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


TARGET = "{_target_: tests.multirun.test_recorded_overrides.canary}"
CORES = ["${canary:}", "${oc.decode:${canary:}}", "x${seq}", "${canary:}${canary:}", TARGET]
CORES += ["$", "{canary:}", "plain", "a b", "", "???", "null", "true", "1e3", "\\", "'", '"', "\n"]
PARTS = st.one_of(st.sampled_from(CORES), st.text(alphabet="${}[]():,=\\'\" _a.", max_size=8))


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    """Generates text that may change its meaning when unescaped one, two or three times."""
    text = "".join(draw(st.lists(PARTS, min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        wrap = draw(st.sampled_from(["escape", "'", '"', "list", "choice", "map", "str", "tag"]))
        if wrap == "escape":
            text = _escaped(text)
        elif wrap in ("'", '"'):
            text = wrap + text.replace("\\", "\\\\").replace(wrap, "\\" + wrap) + wrap
        elif wrap == "list":
            text = f"[{text},b]"
        elif wrap == "map":
            key = draw(st.sampled_from(["a", "_target_", "\\_target_", "_args_", "a\\.b", "1"]))
            text = f"{{{key}: {text}}}"
        elif wrap == "choice":
            text = f"choice({text},b)"
        else:
            text = f"{wrap}({text})"
    return text


KEYS = ["tags", "+callbacks.x", "+callbacks.x._target_", "data.path", "++model.attn.name", "seq"]
KEYS += [
    "callbacks",
    "model/attn",
    "+model.attn.a$b",
    "+hydra.job.env_set.X",
    "~model",
    "experiment",
]
KEYS += [
    "hydra.sweep.dir",
    "+model/bias@hydra.callbacks.x",
    "model.attn@_global_",
    "hydra/launcher",
]


def _nodes(value: Any) -> Iterator[Any]:
    yield value
    children = value.items() if isinstance(value, dict) else enumerate(value or ())
    for name, child in children if isinstance(value, dict | list) else ():
        yield name
        yield from _nodes(child)


@settings(max_examples=250)
@given(st.sampled_from(KEYS), values())
@example("+callbacks.x", _escaped("${oc.decode:" + _escaped("{_tar${tags.0}: evil}") + "}"))
@example("+callbacks.x", "{\\_target_: evil}")
@example("tags", "$\\{canary:\\}")
@example("tags", "['$','{canary:}']")
@example("tags", "choice($\\{canary\\:\\},b)")
@example("+callbacks.x._target_", "os.mkdir")
def test_whatever_is_let_through_holds_no_interpolation_and_names_no_class(key, value):
    try:
        command = plain_overrides("train", [f"{key}={value}"])
    except NotPlain:
        return
    for _ in range(3):  # Hydra reads them, writes them for each job, and the job reads them again
        for override in OverridesParser.create().parse_overrides(command):
            assert not any(p.startswith("_") for p in override.key_or_group.split("."))
            assert not override.key_or_group.startswith("hydra.s")
        command = _jobs(command)[0]
    (override,) = OverridesParser.create().parse_overrides(command)
    for node in _nodes(OmegaConf.to_container(OmegaConf.create({"v": override.value()}))["v"]):
        assert not isinstance(node, str) or ("${" not in node and not node.startswith("_t"))


@settings(max_examples=25)  # each composes: 0.15 s
@given(st.lists(st.tuples(st.sampled_from(KEYS), values()), min_size=1, max_size=2))
def test_no_class_and_no_resolver_of_a_file_is_called(overrides):
    try:
        command = plain_overrides("train", [f"{key}={value}" for key, value in overrides])
        for job in _jobs(command)[:2]:
            validate(compose(*job))
    except (NotPlain, ConfigError):
        pass
    assert CALLED == []


def test_the_canary_would_be_called():
    assert OmegaConf.create({"x": "${canary:}"}).x == "x" and CALLED


@pytest.mark.parametrize(
    "typed",
    [
        ["seq=8,16", "model/attn=naive,sdpa", "optim.lr=1e-3", "tags=[a,'b c']"],
        ['tags=[\'it is\',"say \\"x\\"","a\\\\"]', "data.path='a (b), c'", "data.path=a\\ b"],
        ["seq=range(1,4)", "seq=range(4,1,-1)", "seed=choice(1,2)", "seed=shuffle(1,2)"],
        ["optim.lr=interval(1e-4,1e-2)", "optim.lr=tag(log,interval(0.1,1))", "loss=glob(*)"],
        [
            "model/attn=glob([n*,s*],exclude=sdpa)",
            "callbacks=[default,parity]",
            "~callbacks.sample",
        ],
        ["+callbacks.x={name: progress, every_n_steps: 3}", "callbacks.sample=null", "tags=[]"],
        [
            "seed=int('3')",
            "tags=['1',\"true\",null]",
            "data.path=''",
            "data.path=",
            "model=gpt_tiny",
        ],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=3"],
        ["tags=choice(['1'],['a b'])", "data.path=choice(\"1\",'true',a)", "experiment=null"],
        ["data.path=C:\\dir", "data.path='a$b'", "data.path='{x}'", "model.attn=null"],
        ["seq=sort(3,1,2)", "seq=sort(range(1,5),reverse=true)", "optim.lr=range(0.1,0.4,0.1)"],
    ],
)
def test_what_people_type_means_the_same_afterwards(typed):
    """And the jobs have the names that they had."""
    for one in typed:
        (made,) = plain_overrides("train", [one])
        assert same_overrides([made], [one]) or "choice" in one or "shuffle" in one
        parsed = OverridesParser.create().parse_overrides([one, made])
        if parsed[0].is_discrete_sweep() and "glob" not in one and "shuffle" not in one:
            assert _jobs([one]) == _jobs([made])


@pytest.mark.parametrize(
    "override",
    [
        "tags=" + "[" * 3000 + "]" * 3000,
        "tags=" + "x" * 30_000,
        "seq=range(0,1000000000000)",
        "seq=range(0,inf)",
        "seq=range(0,1,0)",
        "seq=int(" + "9" * 6000 + ")",
        "nope=1",
        "+nope.x=1",
        "seq",
        "=",
        "tags=[choice(a,b)]",
        "tags=['{a}','$']",  # together in another order
        "tags=['$\\{canary:}']",  # after one more unescaping
        "seq=tag('a b',choice(8,16))",
        "model/attn=../bias/alibi",
        "hydra.launcher.n_jobs=[2]",
        "hydra.launcher.n_jobs=2,3",
        "experiment=../x",
        "model/attn=nope",
        "callbacks=[default,nope]",
        "model/attn=glob(../*)",
        "hydra.sweeper.study_name='a/b'",
        "hydra.launcher.n_jobs={a: 1}",
        "hydra.launcher={submitit_folder: x}",
        "hydra/sweeper/sampler=tpe",
        "seq@model=3",
        "tags=[\ud800]x",
        "+callbacks.x={a.b: 1}",
    ],
)
def test_anything_else_is_refused(override):
    with pytest.raises(NotPlain):
        plain_overrides("train", [override])


def test_what_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_overrides, "_element", lambda value: "other")
    with pytest.raises(NotPlain, match="cannot be written"):
        plain_overrides("train", ["seq=8"])


def test_jobs_of_several_sweeps_are_counted_together():
    with pytest.raises(NotPlain, match=r"1,000,000 jobs"):
        plain_overrides("train", ["seq=range(0,1000)", "seed=range(0,1000)"])


@pytest.mark.parametrize("key", ["launcher.n_jobs", "sweeper.n_jobs", "sweeper.n_trials"])
@pytest.mark.parametrize("number", [3_000_000, -2, "true", "1.5", "null"])
def test_a_record_starts_no_crowd(key: str, number: object):
    with pytest.raises(NotPlain, match=f"{key}="):
        plain_overrides("train", [f"hydra.{key}={number}"])


def test_a_record_is_not_read_without_end():
    with pytest.raises(NotPlain, match="200,000 overrides"):
        plain_overrides("train", ["seed=1"] * 200_000)


def test_each_configuration_has_keys_of_its_own():
    assert plain_overrides("sample", ["prompt=a"]) == ["prompt=a"]
    with pytest.raises(NotPlain):
        plain_overrides("train", ["prompt=a"])


@pytest.mark.parametrize(
    ("first", "second", "are_same"),
    [
        (["seq=8"], ["seq=8"], True),
        (["tags=['a']"], ["tags=[a]"], True),
        (["seq=8"], ["seq=16"], False),
        (["seq=1"], ["seq=true"], False),
        (["seq=1"], ["seq=1.0"], False),
        (["seq=8"], ["seq=8", "seed=1"], False),
        (["+seq=8"], ["seq=8"], False),
        (["["], ["seq=8"], False),
    ],
)
def test_overrides_are_compared_by_their_values(first, second, are_same):
    assert same_overrides(first, second) == same_overrides(second, first) == are_same


def test_overrides_that_would_take_minutes_are_not_parsed(monkeypatch) -> None:
    monkeypatch.setattr(
        "xftrain.multirun.recorded_overrides._parse", lambda text: pytest.fail("parsed")
    )
    long = [f"tags=[{','.join('1' * 3000)}]"] * 9
    with pytest.raises(NotPlain, match="characters"):
        plain_overrides("train", long)
    assert same_overrides(long, long)
    assert not same_overrides(long, [text + " " for text in long])
    assert not same_overrides(["seq=1"], ["seq=1", "seed=1"])

"""Dotted overrides mean the slashed ones, and folders are named by them."""

import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from xftrain.config.compose import compose
from xftrain.config.overrides import (
    all_groups,
    normalize,
    normalize_argv,
    path_slug,
    slug,
)

GROUPS = all_groups()
NESTED = sorted(group for group in GROUPS if "/" in group)


# ---- dotted and slashed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model.attn=naive", "model/attn=naive"),
        ("+model.attn=naive", "+model/attn=naive"),
        ("~model.attn", "~model/attn"),
        ("~model.attn=auto", "~model/attn=auto"),
        ("model.attn@other=naive", "model/attn@other=naive"),
        ("model.attn=naive,sdpa", "model/attn=naive,sdpa"),
        ("model.attn=glob(*)", "model/attn=glob(*)"),
        ("model.attn=[naive,sdpa]", "model/attn=[naive,sdpa]"),
        ("hydra.launcher=joblib", "hydra/launcher=joblib"),
        ("hydra.job_logging=disabled", "hydra/job_logging=disabled"),
    ],
)
def test_a_dotted_group_becomes_slashed(typed, meant):
    assert normalize(typed, GROUPS) == meant
    assert normalize(meant, GROUPS) == meant


@pytest.mark.parametrize(
    "typed",
    [
        "model.attn.op=cutlass",
        "model.attn={name: naive}",
        "model.attn= {name: naive}",
        "model.attn=null",
        "model.attn=NULL",
        "model=gpt_tiny",
        "optim.lr=interval(0,1)",
        "hydra.launcher.n_jobs=2",
        "data.path=model.attn=x",
        "tags=[model.attn=x]",
        "model.atn=naive",
        "",
        "=",
    ],
)
def test_anything_else_is_left_alone(typed):
    assert normalize(typed, GROUPS) == typed


@given(
    st.sampled_from(["", "+", "++", "~"]),
    st.one_of(st.sampled_from(NESTED).map(lambda group: group.replace("/", ".")), st.text()),
    st.one_of(st.just(""), st.text().map(lambda text: "=" + text)),
)
def test_normalising_again_changes_nothing_and_only_groups_change(sign, key, value):
    typed = sign + key + value
    meant = normalize(typed, GROUPS)

    assert normalize(meant, GROUPS) == meant
    if meant != typed:
        group = key.replace(".", "/")
        assert group in GROUPS
        assert meant == sign + group + value


@given(st.text(alphabet="model.atn/=~+@ {}[]'\"$,", max_size=20))
def test_what_looks_like_an_override_is_changed_only_for_a_group(typed):
    meant = normalize(typed, GROUPS)

    assert meant == typed or meant.lstrip("+~").partition("=")[0].partition("@")[0] in GROUPS


def test_flags_pass_through():
    argv = ["-m", "--config-name", "train", "model.attn=naive", "--cfg=job"]

    assert normalize_argv(argv, GROUPS) == [*argv[:3], "model/attn=naive", argv[4]]


def test_both_forms_compose_the_same():
    dotted, slashed = compose("model.attn=naive"), compose("model/attn=naive")

    assert dotted.model.attn == {"name": "naive"}
    assert dotted == slashed


def test_an_option_and_its_value_in_either_order():
    first = compose("model.heads=gqa", "model.heads.num_kv_heads=4")
    last = compose("model.heads.num_kv_heads=4", "model.heads=gqa")

    assert first.model.heads == last.model.heads == {"name": "gqa", "num_kv_heads": 4}


@given(st.text(max_size=300))
def test_a_slug_is_the_name_of_one_folder(text):
    assert re.fullmatch(r"[\w.,=+-]{0,150}", slug(text), flags=re.ASCII)


@given(st.text())
def test_a_folder_that_a_run_is_named_by_can_be_typed_as_it_is(text):
    path = f"outputs/00-00-00{path_slug(text)}/last.ckpt"
    assert OverridesParser.create().parse_override(f"ckpt={path}").value() == path


def test_a_slug_keeps_what_a_person_reads_but_fits_a_file_system():
    assert len(slug("tags=" + "x" * 300)) == 150
    assert slug("+model/attn=naive,optim.lr=1e-3,seq=64") == "_attn=naive,lr=1e-3,seq=64"
    both = "callbacks.alibi.rows=1,callbacks.packed.rows=2"  # one word for two keys
    assert slug(both) == f"_{both}"
    assert slug("") == ""  # of jobs that differ in nothing


# ---- what is refused

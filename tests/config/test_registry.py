"""Options are found on disk, read without importing them, and checked field by field."""

import inspect
import math
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xftrain.config import registry, signatures
from xftrain.config.fields import NonNegativeInt, PositiveFloat, PositiveInt, Probability
from xftrain.config.option_checks import checked_option
from xftrain.config.registry import (
    GROUPS,
    build,
    check_built_in,
    conf_dir,
    factory,
    load_class,
    option_names,
    option_schema,
    packages_of,
)
from xftrain.config.signatures import REQUIRED, fields_of, source_of
from xftrain.config.values import describe
from xftrain.errors import ConfigError

OPTIONS = [(group, name) for group in GROUPS for name in option_names(group)]


def _yaml(group: str, name: str) -> dict[str, Any]:
    node = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    return node if group not in registry.ENTRY_GROUPS else node[name]


def test_every_group_has_options_on_disk():
    assert {group for group, _ in OPTIONS} == set(GROUPS)
    assert set(option_names("model/attn")) >= {"auto", "naive", "sdpa", "xformers"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_yaml_has_a_python_file_and_the_other_way_round(group):
    files = {path.stem: path for path in (conf_dir() / group).glob("*.yaml")}
    choices = {stem for stem, path in files.items() if "name:" in path.read_text()}
    folders = [source_of(f"{package}.option").parent for package in packages_of(group)]
    modules = {path.stem for folder in folders for path in folder.glob("[!_]*.py")}

    assert choices == set(option_names(group)) == modules  # helpers of the options are _name.py


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_yaml_names_itself_and_has_all_fields_with_the_defaults_of_the_class(group, name):
    node, fields = _yaml(group, name), option_schema(group, name)

    assert node.pop("name") == name
    assert set(node) == set(fields)
    for key, field in fields.items():
        if field.default is not REQUIRED and not str(node[key]).startswith("$"):
            plain = list(field.default) if isinstance(field.default, tuple) else field.default
            given = float(node[key]) if isinstance(plain, float) else node[key]  # YAML 1.1's 1e-8
            assert given == plain, f"{group}={name}: {key}"


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_fields_read_from_source_are_those_of_the_imported_class(group, name):
    parameters = inspect.signature(load_class(group, name)).parameters.values()
    keyword_only = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    read = {key: field.default for key, field in option_schema(group, name).items()}
    for shared in registry.SHARED_FIELDS.get(group, {}):
        del read[shared]

    required = {key: REQUIRED for key, default in keyword_only.items() if default is inspect._empty}
    assert read == keyword_only | required


def _write_package(folder, monkeypatch, **sources: str) -> None:
    for name, text in sources.items():
        path = folder / "xftrain" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('this module was imported')\n" + text)
    monkeypatch.setattr(signatures, "_ROOT", folder)


def test_fields_are_read_without_importing_the_module(tmp_path, monkeypatch):
    text = (
        "Style = Literal['a', 'b']\n"
        "_WIDTH = 3\n"
        "class Thing:\n"
        "    def __init__(self, dim: int, seq: int = 4, *, style: Style,\n"
        "        width: PositiveInt = _WIDTH, betas: tuple[float, float] = (0.9, -1.0),\n"
        "        path: str | None = None) -> None: ...\n"
    )
    _write_package(tmp_path, monkeypatch, thing=text)

    fields = fields_of("xftrain.thing", "Thing")

    assert fields == {
        "style": (Literal["a", "b"], REQUIRED),
        "width": (PositiveInt, 3),
        "betas": (tuple[float, float], (0.9, -1.0)),
        "path": (str | None, None),
    }


def test_fields_are_inherited_within_the_package_and_absent_without_a_constructor(
    tmp_path, monkeypatch
):
    _write_package(
        tmp_path,
        monkeypatch,
        base="class Base:\n    def __init__(self, *, depth: int = 1) -> None: ...\n",
        child="from xftrain.base import Base as Parent\nclass Child(Parent):\n    name = 'child'\n",
        plain="from abc import ABC\nclass Plain(ABC):\n    pass\n",
    )

    assert fields_of("xftrain.child", "Child") == {"depth": (int, 1)}
    assert fields_of("xftrain.plain", "Plain") == {}


def test_an_annotation_that_cannot_be_read_names_its_file(tmp_path, monkeypatch):
    text = "class Thing:\n    def __init__(self, *, x: Tensor) -> None: ...\n"
    _write_package(tmp_path, monkeypatch, thing=text)

    with pytest.raises(AssertionError, match=r"thing\.py.*Tensor"):
        fields_of("xftrain.thing", "Thing")


def _refusal(key: str, name: Any, node: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        check_built_in(key, name, node)
    return str(refused.value)


@pytest.mark.parametrize(
    ("key", "name", "node", "sentence"),
    [
        (
            "model.heads",
            "gqa",
            {"num_kv_heads": "abc"},
            "model.heads.num_kv_heads must be an integer >= 1 or null, got 'abc'.",
        ),
        (
            "model.heads",
            "gqa",
            {"num_kv_head": 2},
            "model.heads.num_kv_head is not a key of model.heads=gqa; "
            "did you mean model.heads.num_kv_heads?",
        ),
        (
            "model.attn",
            "naive",
            {"nope": 1},
            "model.attn.nope is not a key of model.attn=naive, which has none.",
        ),
        (
            "data",
            "text",
            {"path": "???"},
            "data.path has no value; set it to a string or a list of values, each a string.",
        ),
        (
            "model.bias",
            "alibi",
            {"impl": "fold"},
            "model.bias.impl must be one of folded, dense, got 'fold'.",
        ),
        (
            "optim",
            "adamw",
            {"betas": [0.9]},
            "optim.betas must be a list of 2 values, each a number >= 0 and < 1, got [0.9].",
        ),
        ("optim", "adamw", {"lr": math.inf}, "optim.lr must be a number > 0 and finite, got inf."),
        ("optim", "adamw", {"lr": True}, "optim.lr must be a number > 0, got true."),
    ],
)
def test_a_refusal_is_one_sentence_with_key_rule_and_value(key, name, node, sentence):
    assert _refusal(key, name, node) == sentence


@pytest.mark.parametrize("name", ["xfomers", "../naive", "backends.naive", "", None, 3, ["naive"]])
def test_an_unknown_name_is_refused_with_the_names(name):
    assert ", ".join(option_names("model/attn")) in _refusal("model.attn", name, {})


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


def _accepted(key: str, name: str, field: str, value: Any) -> bool:
    try:
        checked = check_built_in(key, name, {field: value})[field]
    except ConfigError:
        return False
    assert checked == value  # never converted
    return True


@given(ANYTHING)
def test_integers_are_never_guessed(value):
    right = value is None or (type(value) is int and value >= 1)
    assert _accepted("model.bias", "alibi", "window", value) == right


@given(ANYTHING)
def test_numbers_are_never_guessed(value):
    right = type(value) in (int, float) and value > 0 and math.isfinite(value)
    assert _accepted("optim", "adamw", "lr", value) == right


def test_checked_options_are_complete():
    assert check_built_in("model.bias", "alibi", {"name": "alibi", "window": 3}) == {
        "impl": "folded",
        "window": 3,
    }
    assert check_built_in("optim", "adamw", {"betas": [0.5, 0.6]})["betas"] == (0.5, 0.6)


def test_build_calls_the_class_with_positional_arguments_and_checked_options():
    make = factory(checked_option("model.heads", {"name": "gqa", "num_kv_heads": 2}))
    heads = make(32, 4, False)

    assert heads.num_kv_heads == 2
    assert build(checked_option("model.bias", {"name": "window", "window": 7})).window == 7


class OneSlope:
    """A bias of the user's own."""

    def __init__(self, slope: float, *, seqlens: int = 0) -> None:
        self.slope = slope

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> None:
        """None, as nobody asks here."""


def test_target_is_the_door_for_classes_of_the_user():
    node = {"_target_": f"{__name__}.OneSlope", "slope": 0.5}

    assert build(checked_option("model.bias", node)).slope == 0.5
    for wrong, said in [
        ({"_target_": f"{__name__}.TwoSlopes"}, "TwoSlopes cannot be imported"),
        ({**node, "nope": 1}, "model.bias.nope is not a key of model.bias"),
        ({**node, "name": "full"}, "both name and _target_"),
    ]:
        with pytest.raises(ConfigError, match=said):
            build(checked_option("model.bias", wrong))


class Picky:
    """Refuses itself, as a class of the user's may."""

    def __init__(self) -> None:
        raise ConfigError("model.bias.size must be even, got 3.")

    def build(self) -> None:
        """Is never reached."""


def test_the_sentence_of_a_users_class_is_kept(monkeypatch):
    monkeypatch.setattr(registry, "Picky", Picky, raising=False)

    with pytest.raises(ConfigError, match=r"^model\.bias\.size must be even, got 3\.$"):
        build(checked_option("model.bias", {"_target_": "xftrain.config.registry.Picky"}))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (PositiveInt | None, "an integer >= 1 or null"),
        (NonNegativeInt, "an integer >= 0"),
        (PositiveFloat, "a number > 0"),
        (Probability, "a number >= 0 and < 1"),
        (Literal["a", "b"], "one of a, b"),
        (list[str], "a list of values, each a string"),
        (tuple[int, ...], "a list of values, each an integer"),
        (dict[str, int], "a mapping"),
        (bool, "true or false"),
        (Any, "any value"),
    ],
)
def test_rules_in_words(annotation, words):
    assert describe(annotation) == words

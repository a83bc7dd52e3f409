"""The configuration as it is shown when a run begins."""

from hypothesis import given
from hypothesis import strategies as st

from xftrain import compose
from xftrain.config.compose import default_options, validate
from xftrain.config.tree import changed_values, changes_tree, config_tree
from xftrain.config.values import with_lists
from xftrain.train.same_run import flat


def _shown(*overrides: str) -> list[str]:
    return config_tree(validate(compose(*overrides)).to_dict()).splitlines()


def test_the_default_configuration_is_short():
    lines = _shown()
    assert len("\n".join(lines).encode()) < 4096
    assert max(map(len, lines)) < 60


def test_a_value_has_a_line_and_an_option_stands_beside_its_group():
    shown = [line.lstrip("│├└─ ") for line in _shown("model.attn=sdpa", "callbacks.solved=null")]
    assert {"configuration", "seq: 64", "ckpt: null", "compile: false"} <= set(shown)
    assert {"attn: sdpa", "betas: [0.9, 0.95]", "checkpoint", "every_n_steps: null"} <= set(shown)
    assert not [line for line in shown if line.startswith(("name:", "solved"))]


def test_a_class_of_the_users_own_is_named():
    own = validate(compose()).to_dict() | {"optim": {"_target_": "my.Optim", "lr": 0.1}}
    assert "├── optim: my.Optim\n│   └── lr: 0.1\n" in config_tree(own)


def test_a_long_value_is_cut_and_none_spills_over():
    options = {"tags": ["a" * 30] * 9, "path": "two\nlines [bold]as they are[/bold]"}
    _, cut, path = config_tree(options).splitlines()
    assert len(cut) == 100 and cut.endswith("…")
    assert path == "└── path: two lines [bold]as they are[/bold]"
    assert config_tree({"own\n[12:00:00] done": {"a": 1}}).splitlines()[1:] == [
        "└── own [12:00:00] done",
        "    └── a: 1",
    ]


def _changes(*overrides: str) -> list[str]:
    said = changes_tree(validate(compose(*overrides)).to_dict(), default_options())
    return [line.rstrip() for line in said.splitlines()]


def test_the_defaults_are_complete_without_a_check():
    assert with_lists(validate(compose()).to_dict()) == default_options()


def test_a_run_with_the_defaults_shows_a_line():
    assert _changes() == ["configuration: the defaults"]


def test_what_differs_is_shown_with_its_groups_and_nothing_else():
    assert _changes("seq=32", "model.attn=naive", "callbacks.solved=null", "optim.lr=0.1") == [
        "configuration, what differs from the defaults:",
        "├── seq: 32",
        "├── model",
        "│   ├── attn: naive",
        "│   └── pos: learned",
        "│       └── max_positions: 32",
        "├── optim: adamw",
        "│   └── lr: 0.1",
        "└── callbacks",
        "    └── solved: null",
    ]


def test_another_option_is_shown_whole():
    shown = _changes("model.bias=alibi", "optim=adafactor")
    assert "│   └── bias: alibi" in shown
    assert "    ├── lr: 0.03" in shown and "    ├── clip_threshold: 1.0" in shown


@given(
    st.recursive(
        st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 2), max_size=3),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    ),
    st.recursive(
        st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(0, 2), max_size=3),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    ),
)
def test_nothing_is_shown_that_is_equal_and_all_that_differs_is(options, defaults):
    shown, there, here = (
        flat(one) for one in (changed_values(options, defaults), defaults, options)
    )
    for key, value in here.items():
        differs = key not in there or there[key] != value
        assert (shown.get(key) == value) == differs or (not differs and key not in shown)

"""The configuration as it is shown when a run begins."""

from xftrain import compose
from xftrain.config import validate
from xftrain.config_tree import config_tree


def _shown(*overrides: str) -> list[str]:
    return config_tree(validate(compose(*overrides))).splitlines()


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
    own = validate(compose()) | {"optim": {"_target_": "my.Optim", "lr": 0.1}}
    assert "├── optim: my.Optim\n│   └── lr: 0.1\n" in config_tree(own)


def test_a_long_value_is_cut_and_none_spills_over():
    options = {"tags": ["a" * 30] * 9, "path": "two\nlines [bold]as they are[/bold]"}
    _, cut, path = config_tree(options).splitlines()
    assert len(cut) == 100 and cut.endswith("…")
    assert path == "└── path: two lines [bold]as they are[/bold]"

"""Classes of the user's own are checked before training: import, arguments, and what they have."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

import pytest

import xftrain.commands.train
from tests.command_line import one_sentence
from xftrain import interfaces
from xftrain.config import registry
from xftrain.config.option_checks import checked_option
from xftrain.config.own_classes import CONTRACTS, _derives, check_own_class
from xftrain.errors import ConfigError

OWN = """
    from typing import Annotated, Literal, Optional

    import torch
    from annotated_types import Ge
    from lightning.pytorch import Callback
    from xftrain.interfaces import AttnBias, Backend

    class Bias:
        def __init__(
            self,
            slope: float,
            *,
            kind: Literal["up", "down"] = "up",
            sizes: "tuple[int, int]" = (1, 2),
            depth: Annotated[int, Ge(1)] = 1,
            loose: float = None,
            device: Optional[torch.device] = None,
            part: Optional[int] = None,
        ) -> None:
            self.slope = slope

        def build(self, num_heads, seqlens):
            return AttnBias(seqlens=seqlens)

    class Ffn(torch.nn.Module):
        def __init__(self, dim, linear_bias, *, width: int = 8):
            super().__init__()

        def forward(self, x):
            return x

    class NoForward(torch.nn.Module):
        def __init__(self, dim, linear_bias):
            super().__init__()

    class NoPlaces(torch.nn.Module):
        def __init__(self, *, width: int = 8):
            super().__init__()

    class AnyKey(Callback):
        def __init__(self, depth: int, **more):
            pass

    class Optim:
        def build(self, model, schedule, max_steps): ...

    class FormerOptim(Optim):
        def build(self, model, max_steps): ...
        def update_saved(self, optimizer, schedule, max_steps): ...

    class Schedule:
        def factor(self, step): ...

    class Half(Backend):
        name = "half"
        def reasons(self, *a, **k): ...
        def handle_for(self, *a): ...
        def __call__(self, *a): ...

    class Source:
        def __init__(self, seq, batch_size, seed, world_size): ...
        def batch(self, split, step, rank=0): ...
        def decode(self, tokens): ...
        def num_label_bytes(self, labels_BM): ...
        def baseline(self): ...

    class Delegates:
        def __getattr__(self, name):
            return lambda *args: None

    class Plain:
        pass
"""


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(textwrap.dedent(OWN))
    (folder / "broken.py").write_text("import no_such_package\n")
    (folder / "fails.py").write_text("\n\nlimit = 1 / 0\n")
    (folder / "wrong.py").write_text("def f(:\n")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for name in ("mine", "broken", "fails", "wrong"):
        sys.modules.pop(name, None)


def said(key: str, **node: Any) -> str:
    """What is refused of a node; empty where nothing is."""
    node["_target_"] = node.pop("target")
    try:
        check_own_class(registry.group_of(key), key, node)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"slope": "steep"}, "model.bias.slope must be a number, got 'steep'."),
        ({"slope": "???"}, "model.bias.slope has no value; set it to a number."),
        ({}, "model.bias.slope has no value; set it to a number."),
        ({"slope": 1, "kind": "left"}, "model.bias.kind must be one of up, down, got 'left'."),
        ({"slope": 1, "sizes": [1]}, "model.bias.sizes must be a list of 2 values, "),
        ({"slope": 1, "depth": 0}, "model.bias.depth must be an integer >= 1, got 0."),
        ({"slope": True}, "model.bias.slope must be a number, got true."),
        ({"slope": 1, "dept": 2}, "model.bias.dept is not a key of model.bias, which is mine.Bias"),
        ({"slope": 1, "part": {"_target_": "mine.Nope"}}, "model.bias.part._target_=mine.Nope "),
        ({"slope": 1, "part": {"_target_": "mine.AnyKey"}}, "model.bias.part.depth has no value"),
    ],
)
def test_the_keys_of_a_class_of_the_users_own_are_checked_by_its_annotations(values, expected):
    assert said("model.bias", target="mine.Bias", **values).startswith(expected)


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("model.bias", {"target": "mine.Bias", "slope": 1, "sizes": [1, 2], "depth": 3}),
        ("model.bias", {"target": "mine.Bias", "slope": 0.5, "loose": None, "device": "cpu"}),
        ("model.bias", {"target": "mine.Bias", "slope": 1, "part": {"_target_": "mine.Plain"}}),
        ("callbacks.own", {"target": "mine.AnyKey", "depth": 1, "color": "red"}),
        ("model.ffn", {"target": "mine.Ffn", "width": 4}),
        ("data", {"target": "mine.Source", "batch_size": 4}),
        ("optim", {"target": "mine.Delegates"}),
        ("model.bias", {"target": "mine.Bias", "_args_": [1], "_convert_": "all"}),
        (
            "callbacks.own",
            {"target": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"},
        ),
    ],
)
def test_what_fits_is_accepted(key, node):
    assert said(key, **node) == ""


@pytest.mark.parametrize(
    ("key", "node", "expected"),
    [
        ("optim", {"target": "mine.Optim"}, "optim: mine.Optim has no update_saved, which every "),
        (
            "optim",
            {"target": "mine.FormerOptim"},
            "optim: mine.FormerOptim.build is called with model, schedule, max_steps, and takes ",
        ),
        ("schedule", {"target": "mine.Schedule"}, "schedule: mine.Schedule.factor is called with "),
        ("model.attn", {"target": "mine.Half"}, "model.attn: mine.Half has no kernel_for, "),
        ("model.ffn", {"target": "mine.NoForward"}, "model.ffn: mine.NoForward has no forward, "),
        ("model.norm", {"target": "mine.NoPlaces"}, "model.norm._target_=mine.NoPlaces must take "),
        ("model.ffn", {"target": "mine.Ffn", "dim": 3}, "model.ffn.dim must not be set: "),
        ("loss", {"target": "mine.Plain"}, "loss: mine.Plain has no unsupported and no __call__, "),
        ("data", {"target": "mine.Plain"}, "data._target_=mine.Plain must take the positional "),
        (
            "callbacks.own",
            {"target": "mine.Plain"},
            "callbacks.own._target_=mine.Plain must ",
        ),
        (
            "logger.own",
            {"target": "mine.Plain"},
            "logger.own._target_=mine.Plain must derive ",
        ),
    ],
)
def test_what_a_class_lacks_is_named_before_training(key, node, expected):
    assert said(key, **node).startswith(expected)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("absent.Bias", "(ModuleNotFoundError: No module named 'absent')"),
        ("broken.Bias", "broken.py line 1)"),
        ("fails.Bias", "(ZeroDivisionError: division by zero, "),
        ("wrong.Bias", "(SyntaxError: "),
        ("mine.Absent", "cannot be imported"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_key(target, expected):
    sentence = said("model.bias", target=target)
    assert sentence.startswith(f"model.bias._target_={target} cannot be imported (")
    assert expected in sentence and "\n" not in sentence


def test_an_instance_without_the_attributes_of_its_group_is_refused():
    node = {"_target_": "mine.Source"}
    with pytest.raises(ConfigError, match="data: Source has no vocab_size and no num_val_batches"):
        registry.build(checked_option("data", node), 8, 2, 0, 1)


def test_a_base_is_known_by_the_class_and_not_by_its_names():
    named = type("Backend", (), {"__module__": "xftrain.interfaces.mine"})
    own_bar = type("TQDMProgressBar", (), {"__module__": "lightning.pytorch.callbacks_of_mine"})
    assert not _derives(named, "xftrain.interfaces.Backend")
    assert not _derives(own_bar, "lightning.pytorch.callbacks.TQDMProgressBar")
    assert not _derives(named, "a_package.that_is_not_loaded.Backend")
    derived = type("Mine", (interfaces.Backend,), {})
    assert _derives(derived, "xftrain.interfaces.Backend")


def test_the_contracts_are_those_of_the_protocols():
    protocols = {
        "model/bias": interfaces.BiasRecipe,
        "loss": interfaces.Loss,
        "optim": interfaces.Optimizer,
        "schedule": interfaces.Schedule,
        "data": interfaces.DataSource,
    }
    optional = {"encode", "vocabulary", "digest", "facts"}  # of a data source
    assert set(CONTRACTS) == set(registry.GROUPS)
    for group, protocol in protocols.items():
        has = {name for name in vars(protocol) if not name.startswith("_") or name == "__call__"}
        has |= set(protocol.__annotations__)
        contract = CONTRACTS[group]
        assert has - optional == {*contract.methods, *contract.attributes}, group
        for name, arguments in contract.method_arguments.items():
            assert tuple(inspect.signature(getattr(protocol, name)).parameters)[1:] == arguments
    assert set(CONTRACTS["model/attn"].methods) == interfaces.Backend.__abstractmethods__


def test_the_command_ends_with_2_and_one_sentence(command, tmp_path, monkeypatch):
    # the real one, and no second copy of it: other tests replace functions of the first
    monkeypatch.setitem(sys.modules, "xftrain.commands.train", xftrain.commands.train)
    own = "+callbacks.own={_target_: mine.AnyKey, depth: deep}"
    ended = command(own, "trainer=cpu", "hydra.run.dir=run", "hydra.job_logging=disabled")
    assert one_sentence(ended, 2) == "callbacks.own.depth must be an integer, got 'deep'."

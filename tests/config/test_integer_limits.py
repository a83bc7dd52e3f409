"""No integer of a configuration is larger than torch and the kernels can compute with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

import pytest

from xftrain.config import registry
from xftrain.config.command_configs import SampleConfig
from xftrain.config.compose import compose, model_of, validate
from xftrain.config.fields import MAX_INTEGER
from xftrain.config.run_config import GPTConfig, RunConfig, TrainerConfig
from xftrain.config.schema import schema_of
from xftrain.config.signatures import Field
from xftrain.config.values import check_fields
from xftrain.errors import ConfigError


def _with_integers(fields: Mapping[str, Field]) -> dict[str, Any]:
    """A value with an integer in it that is too large, for each field that takes one."""
    found = {name: _too_large(field.annotation) for name, field in fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def _too_large(annotation: Any) -> Any:
    if annotation is int:
        return 2**70
    values = [value for part in get_args(annotation) if (value := _too_large(part)) is not None]
    return (
        [values[0]]
        if values and get_origin(annotation) in (list, tuple)
        else next(iter(values), None)
    )


OWNERS = {
    **{
        f"{group}={name}": registry.option_schema(group, name)
        for group in registry.GROUPS
        for name in registry.option_names(group)
    },
    "the configuration": schema_of(RunConfig),
    "sample": schema_of(SampleConfig),
    "trainer": schema_of(TrainerConfig),
    "model": schema_of(GPTConfig),
}


@pytest.mark.parametrize("owner", [name for name, held in OWNERS.items() if _with_integers(held)])
def test_an_integer_that_is_too_large_is_a_sentence(owner):
    fields = OWNERS[owner]
    for name, value in _with_integers(fields).items():
        with pytest.raises(ConfigError, match=f"^key.{name} must be .*, got ") as refused:
            check_fields("key", {name: fields[name]}, {name: value}, owner=owner)
        assert str(refused.value).endswith("1180591620717411303424.") or value == [2**70]


def test_the_limit_itself_and_large_floats_are_taken():
    fields = {"seed": schema_of(RunConfig)["seed"], "rate": Field(float, 0.0)}
    values = {"seed": MAX_INTEGER, "rate": 2**70}
    assert check_fields("", fields, values, owner="x") == {"seed": MAX_INTEGER, "rate": 2.0**70}


def test_a_checkpoint_with_a_huge_window_is_a_sentence():
    saved = validate(compose("model.bias=window")).to_dict()
    saved["model"]["bias"]["window"] = 2**70
    with pytest.raises(ConfigError, match=r"^model\.bias\.window must be an integer >= 1"):
        model_of(saved)

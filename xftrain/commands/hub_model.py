"""The model in a Hugging Face folder, by our names; the folder is untrusted, see `hugging_face`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from xftrain.commands import builder
from xftrain.config.compose import model_of
from xftrain.config.run_config import ModelConfig
from xftrain.errors import ConfigError, first_line
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import Family, family_of
from xftrain.hugging_face.folder import HubFolder, Weights, read_folder
from xftrain.hugging_face.key_map import KeyMap
from xftrain.model.gpt import GPT
from xftrain.utils.printable import one_line

_MAX_SHOWN = 3  # names in a message


class HubWeights(Mapping[str, Tensor]):
    """The weights of a folder by our names; each is read when it is asked for.

    Args:
        weights: the weights by the names of the class, of which no one is missing.
        key_map: the rules for all weights of the model.
        shapes: their shapes, by our names.
        named: the override that names the folder, for messages.
    """

    def __init__(
        self, weights: Weights, key_map: KeyMap, shapes: Mapping[str, tuple[int, ...]], named: str
    ) -> None:
        self._weights, self.shapes, self._named = weights, dict(shapes), named
        self._tied = key_map.tied or {}
        self._rules = {rule.ours: rule for rule in key_map.rules}
        self._zeros = dict(key_map.zeros)

    def __getitem__(self, name: str) -> Tensor:
        """Reads a weight."""
        rule = self._rules[name]
        theirs = {one: self._weights[self._stored(one)] for one in rule.theirs}
        return KeyMap((rule,), {}).to_ours(theirs, self._named)[name]

    def __iter__(self) -> Iterator[str]:
        """The names of all weights."""
        return iter(self._rules)

    def __len__(self) -> int:
        """The number of weights."""
        return len(self._rules)

    def refuse_others(self) -> None:
        """Reads the weights that our model has not.

        Raises:
            ConfigError: one of them is not 0.
        """
        for name in [one for one in self._zeros if one in self._weights]:
            weight = {name: self._weights[name]}
            KeyMap((), {name: self._zeros[name]}).to_ours(weight, self._named)

    def _stored(self, name: str) -> str:
        """The name under which a weight is stored, which may be tied to another one."""
        return name if name in self._weights else self._tied.get(name, name)


class HubModel(NamedTuple):
    """What a folder holds.

    Attributes:
        config: the configuration of its model; the vocabulary's size is set.
        weights: its weights, of which only the shapes have been read.
    """

    config: ModelConfig
    weights: HubWeights

    @property
    def num_rows(self) -> int:
        """The rows of the embedding."""
        assert self.config.vocab_size is not None
        return self.config.vocab_size


def read_hub_model(path: Path, key: str, *, linear_bias: bool = True) -> HubModel:
    """Reads what a folder says of its model, and compares the shapes of its weights with that.

    Args:
        path: the folder.
        key: the override that names it, for messages.
        linear_bias: False reads a model without biases from a class that always has them, if they
            are all 0.

    Raises:
        ConfigError: the folder is damaged, or its model is not one of those that are known.
    """
    named = f"{key}={one_line(str(path))}"
    folder = read_folder(path, key)
    family = family_of(folder.config, named)
    config = _config(folder, family, named)
    try:
        if config.linear_bias and not linear_bias:
            without = replace(config, linear_bias=False)
            config = without if family.key_map(describe(_planned(without))).zeros else config
        model = _planned(config)
        key_map = family.key_map(describe(model))
        shapes = _checked_shapes(folder.weights, key_map, model, named)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"{named} describes a model that cannot be built ({one_line(first_line(error))}): give "
            "another one."
        ) from error
    return HubModel(config, HubWeights(folder.weights, key_map, shapes, named))


def _planned(config: ModelConfig) -> GPT:
    """The model without memory."""
    with torch.device("meta"):
        return builder.assemble(config, config.vocab_size or 1)


def _config(folder: HubFolder, family: Family, named: str) -> ModelConfig:
    """The checked configuration of the model of a folder."""
    try:
        node = family.model(folder.config)
    except ConfigError as error:
        raise ConfigError(f"{named}: its {error}") from error
    num_layers, most = node["num_layers"], min(len(folder.weights), builder.MAX_LAYERS)
    if num_layers > most:
        raise ConfigError(
            f"{named} is said to have {num_layers:,} layers, and at most {most:,} can be read, as "
            f"it has {len(folder.weights):,} weights: give another one."
        )
    try:
        return model_of({"model": node})
    except ConfigError as error:
        raise ConfigError(
            f"{named}: its config.json describes a model that cannot be built: {error}"
        ) from error


def _checked_shapes(
    weights: Weights, key_map: KeyMap, model: GPT, named: str
) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights by our names.

    Raises:
        ConfigError: a weight is missing, unexpected, or has another shape.
    """
    ours = model.state_dict()
    with torch.device("meta"):
        theirs = key_map.to_theirs(ours)
    wanted: dict[str, tuple[int, ...]] = {n: tuple(weight.shape) for n, weight in theirs.items()}
    wrong = [
        f"{name} is {list(shape)}, and must be {list(wanted[name])}"
        for name, shape in weights.shapes.items()
        if shape != wanted.get(name, shape)
    ]
    if wrong:
        shown = "; ".join(wrong[:_MAX_SHOWN])
        raise ConfigError(
            f"{named} has {len(wrong)} weights of other shapes than its config.json says: {shown}."
        )
    names = [name for name in weights if name not in key_map.zeros]
    key_map.to_ours({n: torch.empty(wanted.get(n, (0,)), device="meta") for n in names}, named)
    return {name: tuple(weight.shape) for name, weight in ours.items()}

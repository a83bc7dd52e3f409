"""Assembles model, data and loss from a checked configuration; knows the groups, not Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from xftrain import config, registry
from xftrain.errors import ConfigError
from xftrain.interfaces import DataSource, Loss, Vocabulary
from xftrain.layer_pattern import layer_names, layer_nodes
from xftrain.layers.spec import LayerSpec
from xftrain.model import GPT

_VOCAB_MULTIPLE = 64  # matrix products want it; GPT-2's 50257 tokens become 50304 rows


def build_model(cfg: Any, data: DataSource | None = None) -> GPT:
    """The GPT that a configuration describes, initialized from its seed, on the CPU.

    Args:
        cfg: what `xftrain.compose` returns.
        data: the data source, which says how large the vocabulary is; built from `cfg` where it
            is needed and not given.

    Raises:
        ConfigError: the configuration is wrong.
    """
    options = config.validate(cfg)
    if data is None and options["model"]["vocab_size"] is None:
        data = build_data(options)
    torch.manual_seed(options["seed"])
    return assemble(options, vocab_size(options, data))


def vocab_size(options: Mapping[str, Any], data: DataSource | Vocabulary | None) -> int:
    """Rows of the embedding: those asked for, else the data's, rounded up."""
    asked = options["model"]["vocab_size"]
    if asked is None:
        assert data is not None
        return -(-data.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    if data is not None and asked < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size must be at least the data's {data.vocab_size} tokens, got {asked}: "
            "raise it, or set it to null."
        )
    return int(asked)


def assemble(options: Mapping[str, Any], num_tokens: int) -> GPT:
    """The GPT with that many rows in its embedding, on torch's current default device."""
    model = options["model"]

    def part(group: str) -> Any:
        return registry.factory(f"model/{group}", f"model.{group}", model[group])

    groups = ("attn", "bias", "pos", "heads", "ffn", "norm", "layers")
    scalars = {key: value for key, value in model.items() if key not in groups}
    return GPT(
        part("attn")(),
        _layer_specs(model),
        part("pos"),
        part("norm"),
        **{**scalars, "vocab_size": num_tokens},
    )


def _layer_specs(model: Mapping[str, Any]) -> list[LayerSpec]:
    """The layers of one period of the pattern; parts of equal options are the same object."""
    made: list[tuple[str, Mapping[str, Any], Any]] = []

    def part(group: str, node: Mapping[str, Any]) -> Any:
        for known_group, known, one in made:
            if (known_group, known) == (group, node):
                return one
        factory = registry.factory(f"model/{group}", f"model.{group}", node)
        made.append((group, node, factory() if group == "bias" else factory))
        return made[-1][-1]

    specs = {
        name: LayerSpec(
            part("bias", nodes["bias"]),
            part("heads", nodes["heads"]),
            part("ffn", nodes["ffn"]),
            None if nodes["pos"] == model["pos"] else part("pos", nodes["pos"]),
        )
        for name, nodes in layer_nodes(model).items()
    }
    return [specs[name] for name in layer_names(model)]


def build_data(options: Mapping[str, Any], world_size: int = 1) -> DataSource:
    """The data source."""
    data = {key: value for key, value in options["data"].items() if key != "batch_size"}
    return registry.build(
        "data",
        "data",
        data,
        options["seq"],
        config.batch_size(options),
        options["seed"],
        world_size,
    )


def build_loss(options: Mapping[str, Any]) -> Loss:
    """The loss."""
    return registry.build("loss", "loss", options["loss"])

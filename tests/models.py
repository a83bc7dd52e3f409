"""Small GPTs for the tests: any option in any place, composed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from tests.model.attn.cells import VARIANTS
from xftrain.commands.builder import assemble
from xftrain.config.compose import compose, validate_as
from xftrain.config.option_checks import checked_option
from xftrain.config.option_config import OptionConfig
from xftrain.config.registry import ENTRY_GROUPS
from xftrain.config.run_config import RunConfig
from xftrain.model.gpt import GPT

VOCAB = 64


@cache
def _composed() -> RunConfig:
    words = ("model.dim=64", "model.num_layers=2", "model.num_heads=4", "seq=130")
    return validate_as(RunConfig, compose(*words))


def options(
    *, bias: str = "causal", pos: str = "learned", heads: str = "mha", **model: Any
) -> RunConfig:
    """gpt_tiny with 2 layers, width 64 and 4 heads, and with these options of `model`.

    Args:
        bias: an option or one of the variants of cells.py; `full`, too, which runs refuse.
        pos: an option.
        heads: an option.
        model: further keys; the string of a group chooses its option.
    """
    name, fields = VARIANTS.get(bias, (bias, {}))
    nodes: dict[str, Any] = {"bias": {"name": name, **fields}, "pos": {"name": pos}, "heads": heads}
    if pos == "learned":
        nodes["pos"]["max_positions"] = 130
    nodes |= {"attn": "naive"} | model
    return changed(_composed(), {f"model.{key}": value for key, value in nodes.items()})


def changed(cfg: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values at these dotted keys.

    They need not keep together what `validate` checks: a test may ask for what a run refuses.
    """
    for key, value in values.items():
        cfg = _with(cfg, key, "", value)
    return cfg


def _with(node: Any, key: str, place: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    if isinstance(node, OptionConfig):
        return node.with_options(**{name: value})
    old, place = getattr(node, name), f"{place}.{name}".removeprefix(".")
    if rest:
        return replace(node, **{name: _with(old, rest, place, value)})
    if isinstance(old, OptionConfig):
        value = checked_option(place, {"name": value} if isinstance(value, str) else value)
    elif name in ENTRY_GROUPS:
        value = {entry: checked_option(f"{place}.{entry}", node) for entry, node in value.items()}
    return replace(node, **{name: value})


def gpt(*, seed: int = 0, scale: float = 1.0, **chosen: Any) -> GPT:
    """The model of `options`.

    Args:
        seed: of the weights.
        scale: factor of the matrices, which start so small that attention hardly matters.
        chosen: see `options`.
    """
    torch.manual_seed(seed)
    model = assemble(options(**chosen).model, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= scale
    return model


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def with_bias(model: GPT, make: Callable[[Any], Any]) -> None:
    """Changes the recipe of the attention bias in every layer."""
    made: dict[int, Any] = {}
    for spec in model.specs:
        made.setdefault(id(spec.bias), make(spec.bias))
    model.specs = [spec._replace(bias=made[id(spec.bias)]) for spec in model.specs]


def sampled_without_cache(model: GPT, prompt_BM: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The most likely tokens after a prompt, each from the whole row computed anew."""
    tokens_BM = prompt_BM
    with torch.no_grad():
        for _ in range(num_tokens):
            tokens_BM = torch.cat([tokens_BM, model(tokens_BM)[:, -1:].argmax(-1)], dim=1)
    return tokens_BM

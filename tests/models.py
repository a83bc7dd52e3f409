"""Small GPTs for the tests: any option in any place, composed once."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

import torch

from tests.attention.cells import VARIANTS
from xftrain.builder import assemble
from xftrain.config import compose, validate
from xftrain.model import GPT

VOCAB = 64


@cache
def _composed() -> dict[str, Any]:
    return validate(compose("model.dim=64", "model.num_layers=2", "model.num_heads=4", "seq=130"))


def options(
    *, bias: str = "causal", pos: str = "learned", heads: str = "mha", **model: Any
) -> dict[str, Any]:
    """gpt_tiny with 2 layers, width 64 and 4 heads, and with these options of `model`.

    Args:
        bias: an option or one of the variants of cells.py; `full`, too, which runs refuse.
        pos: an option.
        heads: an option.
        model: further keys; the string of a group chooses its option.
    """
    chosen = deepcopy(_composed())
    name, fields = VARIANTS.get(bias, (bias, {}))
    nodes = {"bias": {"name": name, **fields}, "pos": {"name": pos}, "heads": {"name": heads}}
    if pos == "learned":
        nodes["pos"]["max_positions"] = 130
    for key, value in ({"attn": "naive"} | model).items():
        is_option = isinstance(value, str) and isinstance(chosen["model"].get(key), dict)
        nodes[key] = {"name": value} if is_option else value
    chosen["model"] |= nodes
    return chosen


def gpt(*, seed: int = 0, scale: float = 1.0, **chosen: Any) -> GPT:
    """The model of `options`.

    Args:
        seed: of the weights.
        scale: factor of the matrices, which start so small that attention hardly matters.
        chosen: see `options`.
    """
    torch.manual_seed(seed)
    model = assemble(options(**chosen), VOCAB)
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

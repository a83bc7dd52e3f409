"""The parts of one layer of a model, and which layers have equal attention calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from xftrain.interfaces import AttnCall, AttnCase, AttnShape, BiasRecipe


class LayerSpec(NamedTuple):
    """The parts of a layer that may differ from its neighbour's.

    Attributes:
        bias: recipe of the attention bias.
        make_heads: (D, H, linear_bias) -> projection to q, k, v.
        make_ffn: (D, linear_bias) -> feed-forward.
        make_pos: (D, K) -> position encoding of this layer; None means that of the model.
    """

    bias: BiasRecipe
    make_heads: Callable[..., nn.Module]
    make_ffn: Callable[..., nn.Module]
    make_pos: Callable[..., Any] | None = None


def distinct_cases(
    specs: Sequence[LayerSpec],
    shapes: Sequence[AttnShape],
    seqlens: tuple[int, ...] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> list[AttnCase]:
    """The distinct attention calls of a batch, and the layers of each.

    Args:
        specs: the spec of each layer.
        shapes: the shape of each layer's calls; equal shapes are the same object.
        seqlens: lengths of documents packed into the one row.
        device: where q, k and v are.
        dtype: of q, k and v.

    Raises:
        ConfigError: a bias does not fit the batch.
    """
    # group layers by recipe and shape first, so that biases are compared once per group
    alike: dict[tuple[int, int], list[int]] = {}
    for index, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        alike.setdefault((id(spec.bias), id(shape)), []).append(index)
    cases: dict[Any, AttnCase] = {}
    for (recipe, _), layers in alike.items():
        shape = shapes[layers[0]]
        bias = specs[layers[0]].bias.build(shape.H, seqlens)
        bias.check_fits(shape)
        bias = bias.simplified(shape.M)
        key = (recipe if bias.key is None else bias.key, shape)
        known = cases[key].layers if key in cases else ()
        call = AttnCall(bias, shape, dtype, device)
        cases[key] = AttnCase(call, tuple(sorted((*known, *layers))))
    return list(cases.values())

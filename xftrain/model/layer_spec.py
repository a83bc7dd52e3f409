"""The parts of one layer of a model, and which layers have equal attention calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall, AttnCase, AttnShape, BiasRecipe
from xftrain.interfaces.batch_checks import describe_value, format_lengths


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


def built_bias(recipe: BiasRecipe, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
    """The attention bias of a batch, checked to keep the documents of the batch apart.

    Args:
        recipe: the bias recipe.
        num_heads: H.
        seqlens: lengths of documents packed into the one row.

    Raises:
        ConfigError: the recipe does not return a bias, or one with other documents.
    """
    bias = recipe.build(num_heads, seqlens)
    said = f"model.bias: {type(recipe).__name__}.build"
    if not isinstance(bias, AttnBias):
        raise ConfigError(
            f"{said} must return an xftrain.interfaces.AttnBias, got {describe_value(bias)}."
        )
    if bias.seqlens != seqlens:
        given, got = format_lengths(seqlens), format_lengths(bias.seqlens)
        raise ConfigError(
            f"{said} must return an AttnBias with the seqlens given to it, {given}, got {got}: "
            "pass them on as AttnBias(seqlens=seqlens), or packed documents attend to each other."
        )
    return bias


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
        device: device of q, k and v.
        dtype: dtype of q, k and v.

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
        bias = built_bias(specs[layers[0]].bias, shape.H, seqlens)
        bias.check_fits(shape)
        bias = bias.simplified(shape.M)
        key = (recipe if bias.key is None else bias.key, shape)
        known = cases[key].layers if key in cases else ()
        call = AttnCall(bias, shape, dtype, device)
        cases[key] = AttnCase(call, tuple(sorted((*known, *layers))))
    return list(cases.values())

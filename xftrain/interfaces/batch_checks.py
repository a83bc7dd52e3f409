"""Checks of batches from a data source, of document lengths, and of a bias."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from xftrain.errors import ConfigError

_BATCH_TENSORS = ("tokens_BM", "labels_BM", "positions_1M")
_SHOWN = 8  # maximum number of document lengths in a message


class BatchError(ConfigError):
    """A batch breaks a rule of `Batch`; the caller that knows the data source adds its name."""


def document_reasons(seqlens: Sequence[int] | None, num_rows: int, num_positions: int) -> list[str]:
    """Reasons why the document lengths do not fill one row; empty if they do."""
    if num_rows < 1 or num_positions < 1:
        return [f"a batch needs at least one token, got {num_rows} x {num_positions} tokens"]
    if seqlens is None:
        return []
    if not isinstance(seqlens, tuple):  # other sequences cannot be the key of a prepared handle
        return [f"seqlens must be a tuple of integers or None, got {type(seqlens).__name__}"]
    for length in seqlens:
        if not _is_count(length):
            return [
                f"seqlens must be integers of at least 1, got {length!r}: leave empty documents out"
            ]
    if num_rows != 1 or sum(seqlens) != num_positions:
        return [
            "seqlens must sum to the length of the one row that the documents are packed into, "
            f"got a sum of {sum(seqlens)} for {num_rows} x {num_positions} tokens"
        ]
    return []


def check_documents(seqlens: Sequence[int] | None, num_rows: int, num_positions: int) -> None:
    """Refuses document lengths that do not fill one row, and a batch without tokens.

    Raises:
        ConfigError: names the rule and the lengths.
    """
    if reasons := document_reasons(seqlens, num_rows, num_positions):
        raise ConfigError(f"{reasons[0]}.")


def check_batch(
    tokens_BM: Tensor, labels_BM: Tensor, positions_1M: Tensor, seqlens: Sequence[int] | None
) -> None:
    """Refuses a batch whose tensors are not int64, or have inconsistent shapes.

    Raises:
        BatchError: names the rule, and the dtypes or the shapes.
    """
    tensors = (tokens_BM, labels_BM, positions_1M)
    for name, tensor in zip(_BATCH_TENSORS, tensors, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
            raise BatchError(
                f"a batch must have {name} as an int64 tensor, got {describe_value(tensor)}: "
                "correct the data source."
            )
    tokens, labels, positions = (tuple(x.shape) for x in tensors)
    if len(tokens) != 2 or labels != tokens or positions != (1, tokens[1]):
        raise BatchError(
            "a batch must have tokens_BM and labels_BM of one shape [B, M] and positions_1M of "
            f"[1, M], got {tokens}, {labels} and {positions}: correct the data source."
        )
    if reasons := document_reasons(seqlens, *tokens):
        raise BatchError(f"{reasons[0]}.")
    if not tokens_BM.device == labels_BM.device == positions_1M.device:
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise BatchError(
            f"a batch must have all its tensors on one device, got {devices}: correct the data "
            "source."
        )


def value_reasons(
    tokens_BM: Tensor,
    labels_BM: Tensor,
    positions_1M: Tensor,
    seqlens: Sequence[int] | None,
    *,
    vocab_size: int,
    ignored_label: int,
) -> list[str]:
    """Reasons why the values of a batch on the CPU are wrong; empty if they are right.

    Args:
        tokens_BM: int64 tokens.
        labels_BM: int64 labels.
        positions_1M: int64 positions.
        seqlens: lengths of documents packed into the one row.
        vocab_size: V; every token is below it.
        ignored_label: the label of a token that has none.
    """
    reasons = []
    tokens, labels, positions = (x.numpy() for x in (tokens_BM, labels_BM, positions_1M[0]))
    # as an unsigned integer, a negative value exceeds every token: one pass instead of two
    if tokens.view(np.uint64).max() >= vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
        reasons.append(f"tokens_BM must be from 0 to {vocab_size - 1}, got {wrong[0]}")
    if labels.view(np.uint64).max() >= vocab_size:
        is_label = labels != ignored_label
        wrong = labels[is_label & ((labels < 0) | (labels >= vocab_size))]
        if wrong.size:
            reasons.append(
                f"labels_BM must be from 0 to {vocab_size - 1}, or {ignored_label} where a token "
                f"has no label, got {wrong[0]}"
            )
    expected = np.arange(len(positions))
    if seqlens is not None:
        lengths = np.array(seqlens)
        expected -= np.repeat(lengths.cumsum() - lengths, lengths)
    if not np.array_equal(positions, expected):
        index = int((positions != expected).argmax())
        reasons.append(
            "positions_1M must count up from 0 in each document, got "
            f"{positions[index]} in place of {expected[index]} at index {index}"
        )
    return reasons


def format_lengths(seqlens: Sequence[int] | None) -> str:
    """Formats document lengths for an error message, which shows only the first few."""
    if not isinstance(seqlens, tuple) or len(seqlens) <= _SHOWN:
        return str(seqlens) if isinstance(seqlens, tuple) else describe_value(seqlens)
    return f"({', '.join(map(str, seqlens[:_SHOWN]))}, ...), {len(seqlens)} documents"


def describe_value(value: object) -> str:
    """Describes a value from a user's class for an error message: type, or dtype and shape."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'an' if dtype[0] == 'i' else 'a'} {dtype} tensor of {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(describe_value, value))})"
    return "None" if value is None else f"a value of type {type(value).__name__}"


def check_bias(
    causal: bool,
    window: int | None,
    slopes: Sequence[float] | None,
    additive_HMM: Tensor | None,
) -> None:
    """Refuses a bias whose fields contradict each other or are not finite.

    Raises:
        ConfigError: names the rule and the value.
    """
    if not causal and (window is not None or slopes is not None):
        raise ConfigError(
            "model.bias: a window and slopes need causal=True, got causal=False with "
            f"window={window} and slopes={slopes}: set causal=True, or put the bias into "
            "additive_HMM."
        )
    if window is not None and not _is_count(window):
        raise ConfigError(
            "model.bias: window is the number of keys that a query sees, itself included, and must "
            f"be an integer of at least 1, got {window!r}."
        )
    if slopes is not None and not (
        isinstance(slopes, tuple) and all(_is_finite(slope) for slope in slopes)
    ):
        shown = tuple(map(str, slopes)) if isinstance(slopes, tuple) else describe_value(slopes)
        raise ConfigError(
            f"model.bias: slopes must be a tuple of finite numbers or None, got {shown}."
        )
    if additive_HMM is not None and not (
        isinstance(additive_HMM, Tensor)
        and additive_HMM.dim() == 3
        and additive_HMM.is_floating_point()
    ):
        raise ConfigError(
            "model.bias: additive_HMM must be a floating-point tensor of [H or 1, M, M], got "
            f"{describe_value(additive_HMM)}."
        )


def check_scores(scale: float | None, softcap: float | None) -> None:
    """Refuses a scale or a soft cap of the scores that is not a finite number above 0.

    Raises:
        ConfigError: names the rule and the value.
    """
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is not None and not _is_above_zero(value):
            raise ConfigError(
                f"model.bias: {name} must be a finite number above 0, or None, got {value!r}."
            )


def bias_misfits(
    slopes: Sequence[float] | None, additive_HMM: Tensor | None, num_heads: int, num_positions: int
) -> list[str]:
    """Reasons why a bias does not fit a model and a row of these sizes; empty if it does."""
    reasons = []
    if slopes is not None and len(slopes) != num_heads:
        reasons.append(
            f"slopes must be one for each of the {num_heads} query heads, got {len(slopes)}"
        )
    if additive_HMM is not None:
        square, shape = (num_positions, num_positions), tuple(additive_HMM.shape)
        if shape not in ((1, *square), (num_heads, *square)):
            reasons.append(
                f"additive_HMM must be of [{num_heads} or 1, {num_positions}, {num_positions}], "
                f"got {list(shape)}"
            )
    return reasons


def _is_finite(value: object) -> bool:
    """Whether the value is a finite number; a tensor that holds one number counts as well."""
    try:
        return isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def _is_above_zero(value: object) -> bool:
    """Whether the value is a finite Python or NumPy number above 0."""
    return isinstance(value, Real) and isfinite(float(value)) and float(value) > 0


def _is_count(value: object) -> bool:
    """Whether the value is a Python or NumPy integer of at least 1."""
    # the type first, as Integral takes longer, and a packed batch has many documents
    return (type(value) is int or isinstance(value, Integral)) and int(value) >= 1

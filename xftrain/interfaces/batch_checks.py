"""Checks of batches from a data source, of document lengths, and of a bias."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real

from torch import Tensor

from xftrain.errors import ConfigError


def document_reasons(seqlens: Sequence[int] | None, num_rows: int, num_positions: int) -> list[str]:
    """Reasons why the document lengths do not fill one row; empty if they do."""
    if num_rows < 1 or num_positions < 1:
        return [f"a batch needs at least one token, got {num_rows} x {num_positions} tokens"]
    if seqlens is None:
        return []
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
    """Refuses a batch whose tensors have inconsistent shapes.

    Raises:
        ConfigError: names the rule and the shapes.
    """
    tokens, labels, positions = (tuple(x.shape) for x in (tokens_BM, labels_BM, positions_1M))
    if len(tokens) != 2 or labels != tokens or positions != (1, tokens[1]):
        raise ConfigError(
            "a batch must have tokens_BM and labels_BM of one shape [B, M] and positions_1M of "
            f"[1, M], got {tokens}, {labels} and {positions}: correct the data source."
        )
    check_documents(seqlens, *tokens)


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
    if slopes is not None and not all(isfinite(slope) for slope in slopes):
        raise ConfigError(f"model.bias: slopes must be finite numbers, got {tuple(slopes)}.")
    if additive_HMM is not None and (
        additive_HMM.dim() != 3 or not additive_HMM.is_floating_point()
    ):
        raise ConfigError(
            "model.bias: additive_HMM must be a floating-point tensor of [H or 1, M, M], got "
            f"{additive_HMM.dtype} of {tuple(additive_HMM.shape)}."
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


def _is_above_zero(value: object) -> bool:
    """Whether the value is a finite Python or NumPy number above 0."""
    return isinstance(value, Real) and isfinite(float(value)) and float(value) > 0


def _is_count(value: object) -> bool:
    """Whether the value is a Python or NumPy integer of at least 1."""
    return isinstance(value, Integral) and int(value) >= 1

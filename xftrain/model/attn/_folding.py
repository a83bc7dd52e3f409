"""Folds ALiBi into extra features of q and k, so that any kernel computes it in linear memory.

Softmax over the keys does not change when a constant is added per query, so ALiBi's
`-slope * (i - j)` may be replaced by `slope * j`, which is a dot product of a query feature (the
slope) and a key feature (the position). Both are split into pieces that the dtype represents
exactly, so that no precision is lost: the slope into a sum of rounded pieces, the position into
digits of a power-of-two base, with the power multiplied into the slope.

Positions restart in every packed document, which keeps the numbers small. In float32 the query's
own position is subtracted too, so that the products cancel near the diagonal, where attention is
large. Opposite products must cancel before anything else is added to them, also in kernels with
several partial sums. Some CPU BLAS libraries sum every eighth feature separately. CUTLASS sums the
first eight features and then every 32: it computes a float32 matmul as three TF32 matmuls
(`custom_mma_multistage.h` in torch), and its first tile of 32 may be half full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall
from xftrain.kernels.prepend_features import prepend_features

# Per dtype: bits of one exact piece; number of pieces of a slope; allowed error of a score.
_PIECES: dict[torch.dtype, tuple[int, int, float]] = {
    torch.bfloat16: (8, 3, 2.0**-8),
    torch.float16: (11, 2, 2.0**-8),
    torch.float32: (11, 3, 2.0**-11),  # 11 bits: exact in kernels that use TF32 too
    torch.float64: (26, 2, 2.0**-30),
}
_OWN_SUBTRACTED = (
    torch.float32,
    torch.float64,
)  # dtypes in which the query's own position is subtracted
_ALIGN = 16  # head widths are multiples: 80 is faster than 72 or 96, 144 than 136 or 160
# features between a product and its opposite; blocks after the first have 16 features
_CANCEL_DISTANCE = 8


@dataclass(frozen=True)
class Fold:
    """The features to prepend to q and k.

    Attributes:
        q_1MHF: query features, already divided by the kernel's scale; M is 1 if they are the same
            at every position.
        k_1M1F: key features, the same for every head.
        scale: scale argument of the kernel.
        q_factor: factor of q; times `scale` it is the scale of the call.
    """

    q_1MHF: Tensor
    k_1M1F: Tensor
    scale: float
    q_factor: float

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor) -> tuple[Tensor, Tensor]:
        """q and k with the features prepended: [B, M, H, F+K] and [B, M, G, F+K]."""
        q_BMHK = q_BMHK if self.q_factor == 1 else q_BMHK * self.q_factor
        return prepend_features(q_BMHK, self.q_1MHF), prepend_features(k_BMGK, self.k_1M1F)


def is_folded(bias: AttnBias) -> bool:
    """Whether ALiBi is folded: the bias has slopes and does not ask for a dense tensor."""
    return bias.slopes is not None and not bias.dense


def without_folded_slopes(bias: AttnBias) -> AttnBias:
    """The bias for the kernel's mask, without slopes that are folded into q and k."""
    return replace(bias, slopes=None) if is_folded(bias) else bias


def folding_reasons(
    bias: AttnBias, num_positions: int, dtype: torch.dtype, head_dim: int | None = None
) -> list[str]:
    """Reasons why this bias cannot be folded at this length and dtype; empty means that it can.

    Args:
        bias: the bias.
        num_positions: M.
        dtype: dtype of q and k.
        head_dim: K, for the check that features do not overflow; None leaves it to `fold`.
    """
    if bias.slopes is None:
        return []
    if dtype not in _PIECES:
        return [f"ALiBi cannot be folded in {dtype}"]
    # Scores accumulate in float32 (float64 for float64): slope * position must leave enough bits.
    longest = max(bias.seqlens or (num_positions,))
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    steepest, allowed = max(abs(slope) for slope in bias.slopes), _PIECES[dtype][2]
    error = steepest * longest * unit
    if error > allowed:
        return [
            f"ALiBi folded over {longest} positions would round scores by up to {error:.1g}, "
            f"more than {allowed:.1g} in {dtype}"
        ]
    if head_dim is not None:
        bits = _PIECES[dtype][0]
        scale = head_dim**-0.5 if bias.scale is None else bias.scale
        feature = steepest / scale * 2.0 ** (bits * (_num_digits(longest, bits) - 1))
        if feature > (largest := torch.finfo(dtype).max):
            return [
                f"ALiBi folded over {longest} positions with a slope of {steepest:.3g} needs "
                f"features of {feature:.3g}, and the largest number in {dtype} is {largest:.5g}"
            ]
    return []


def _num_digits(num_positions: int, bits: int) -> int:
    """Number of digits, of `bits` bits each, of the last position of a document."""
    return max(1, math.ceil((num_positions - 1).bit_length() / bits))


def num_features(call: AttnCall) -> int:
    """The number of features that `fold` prepends to q and k; 0 if nothing is folded."""
    bias, shape, dtype, _ = call
    if not is_folded(bias) or dtype not in _PIECES:
        return 0
    bits, num_pieces, _ = _PIECES[dtype]
    num_digits = _num_digits(max(bias.seqlens or (shape.M,)), bits)
    count = num_pieces * num_digits
    if dtype in _OWN_SUBTRACTED:
        count = _CANCEL_DISTANCE + sum(
            2 * (n + -n % _CANCEL_DISTANCE) for n in (*[1] * num_digits, count - num_digits)
        )
    return count + -(count + shape.K) % _ALIGN


def fold(call: AttnCall) -> Fold:
    """The features of an ALiBi bias for one batch.

    Raises:
        ConfigError: a document is too long to be folded, see `folding_reasons`.
    """
    bias, shape, dtype, device = call
    assert bias.slopes is not None
    if reasons := folding_reasons(bias, shape.M, dtype, shape.K):
        raise ConfigError(f"{reasons[0]}: shorten the documents, or use model.attn=flex.")
    bits, num_pieces, _ = _PIECES[dtype]
    first_M, _ = bias.documents_M(shape.M, device)
    positions_M = torch.arange(shape.M, device=device) - first_M
    num_digits = _num_digits(max(bias.seqlens or (shape.M,)), bits)
    digits_M = [(positions_M >> (bits * n)) & (2**bits - 1) for n in range(num_digits)]
    subtract_own = dtype in _OWN_SUBTRACTED

    scale = _kernel_scale(call)
    rest_H = torch.tensor(bias.slopes, dtype=torch.float64) / scale
    pairs: list[_FeaturePair] = []  # the largest first
    for _ in range(num_pieces):
        piece_H = _round_to_bits(rest_H, bits)
        rest_H = rest_H - piece_H
        for n in reversed(range(num_digits)):
            slope_1H = (piece_H * 2.0 ** (bits * n)).to(device, dtype, non_blocking=True)[None]
            pairs.append((slope_1H, digits_M[n].to(dtype)))
    zero: _FeaturePair = torch.zeros_like(pairs[0][0]), torch.zeros_like(pairs[0][1])
    features = _subtract_own_position(pairs, num_digits, zero) if subtract_own else pairs
    features = features + [zero] * (-(len(features) + shape.K) % _ALIGN)
    q_feats, k_feats = zip(*features, strict=True)
    return Fold(
        q_1MHF=torch.stack(torch.broadcast_tensors(*q_feats), dim=-1)[None],
        k_1M1F=torch.stack(k_feats, dim=-1)[None, :, None],
        scale=scale,
        q_factor=call.scale / scale,
    )


def _kernel_scale(call: AttnCall) -> float:
    """The scale of the call; on a CPU in float32 and wider, the nearest power of two to it.

    The backward pass of torch's CPU kernel multiplies by the scale within the dot product, before
    features have cancelled: they stay exact only if the scale is a power of two.
    """
    if call.device.type != "cpu" or call.dtype not in _OWN_SUBTRACTED:
        return call.scale
    return float(2.0 ** round(math.log2(call.scale)))


_FeaturePair = tuple[Tensor, Tensor]  # a feature of the query, [1 or M, H], and of the key, [M]


def _subtract_own_position(
    pairs: list[_FeaturePair], num_large: int, zero: _FeaturePair
) -> list[_FeaturePair]:
    """Products, each with the product of the query's own position subtracted further on.

    The sum of two large products would be rounded, so each cancels before the next is added.
    """
    groups = [[pair] for pair in pairs[:num_large]] + [pairs[num_large:]]
    found = [zero] * _CANCEL_DISTANCE  # CUTLASS sums these separately
    for group in groups:
        assert len(group) <= _CANCEL_DISTANCE
        own = [(-q_1H * k_M[:, None], torch.ones_like(k_M)) for q_1H, k_M in group]
        filler = [zero] * (-len(group) % _CANCEL_DISTANCE)
        found += [*group, *filler, *own, *filler]
    return found


def _round_to_bits(values: Tensor, bits: int) -> Tensor:
    """Values rounded to a mantissa of `bits` bits, so that their product with a digit is exact."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2.0**bits).round() / 2.0**bits, exponent)

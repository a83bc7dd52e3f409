"""The Triton kernel of `softmax_gradient`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def softmax_gradient_kernel(  # type: ignore[no-untyped-def]
    logits,
    labels,
    losses,
    correct,
    added,
    vocab_size,
    stride,
    IGNORED: tl.constexpr,
    NEEDS_GRAD: tl.constexpr,
    IS_REGULARIZED: tl.constexpr,
    Z_LOSS: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Runs a program per row: a pass for maximum and sum, then one from the cache that writes.

    The kernel is bound by instructions, not by memory. So only the last block of a row is masked,
    exponentials are to base 2, and the label is handled outside the loops. Without regularization
    (`IS_REGULARIZED`) nothing is written to `added`; a `SOFTCAP` of 0 does not cap the logits.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    # groups of adjacent logits, each loaded at once and owned by one thread
    groups: tl.constexpr = BLOCK // GROUP
    columns = tl.arange(0, groups)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    whole = vocab_size // BLOCK * BLOCK
    if label == IGNORED:
        tl.store(losses + row, 0.0)
        tl.store(correct + row, False)
        if IS_REGULARIZED:
            tl.store(added + row, 0.0)
        if NEEDS_GRAD:
            zeros = tl.zeros([groups, GROUP], logits.dtype.element_ty)
            for start in range(0, vocab_size, BLOCK):
                at = start + columns
                tl.store(logits + at, zeros, at < vocab_size)
    else:
        # reduce within each group, and over all groups once at the end: a reduction over threads in
        # every iteration would make the program wait for its slowest warp
        largest = tl.full([groups], LOWEST, tl.float32)  # finite, as -inf - -inf would be NaN
        total = tl.zeros([groups], tl.float32)
        # of the logits, for their mean; reduced at the end, since Triton 3.6 cannot compile a loop
        # that adds the sums of float32 blocks
        sums = tl.zeros([groups, GROUP], tl.float32)
        for start in range(0, whole, BLOCK):
            block = _capped(tl.load(logits + start + columns), SOFTCAP)
            largest, total = _accumulate(largest, total, block)
            if LABEL_SMOOTHING > 0:
                sums += block.to(tl.float32)
        if whole < vocab_size:
            at = whole + columns
            rest = _load_capped(logits, at, at < vocab_size, SOFTCAP)
            largest, total = _accumulate(largest, total, rest)
            if LABEL_SMOOTHING > 0:
                sums += tl.where(at < vocab_size, rest.to(tl.float32), 0.0)
        top = tl.max(largest, axis=0)
        log_total = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
        # a label out of range makes the row NaN, which the guard against NaN reports
        is_there = (label >= 0) & (label < vocab_size)
        own = _capped(tl.load(logits + label, is_there, other=float("nan")), SOFTCAP)
        own = own.to(tl.float32)
        tl.store(losses + row, log_total - own)
        if IS_REGULARIZED:
            terms = Z_LOSS * log_total * log_total
            if LABEL_SMOOTHING > 0:
                terms += LABEL_SMOOTHING * (own - tl.sum(sums) / vocab_size)
            tl.store(added + row, terms)
        is_first = own == top
        if is_first:
            before = tl.full([groups], LOWEST, tl.float32)
            for begin in range(0, label, BLOCK):
                ahead = begin + columns
                x = _load_capped(logits, ahead, ahead < label, SOFTCAP).to(tl.float32)
                before = tl.maximum(before, tl.max(x, axis=1))
            is_first = tl.max(before, axis=0) < top
        tl.store(correct + row, is_first)
        if NEEDS_GRAD:
            log_total += 0.0 * own
            tl.debug_barrier()  # all reads above precede the writes below
            factor = 1.0  # the gradient is factor * softmax - offset, but for the label
            offset = 0.0
            if IS_REGULARIZED:
                factor += 2.0 * Z_LOSS * log_total
                offset += LABEL_SMOOTHING / vocab_size
            for start in range(0, whole, BLOCK):
                here = logits + start + columns
                grad = _gradient(tl.load(here), log_total, factor, offset, IS_REGULARIZED, SOFTCAP)
                tl.store(here, grad)
            if whole < vocab_size:
                at = whole + columns
                last = tl.load(logits + at, at < vocab_size, other=-float("inf"))
                grad = _gradient(last, log_total, factor, offset, IS_REGULARIZED, SOFTCAP)
                tl.store(logits + at, grad, at < vocab_size)
            tl.debug_barrier()
            own_grad = tl.exp(own - log_total)
            if IS_REGULARIZED:
                own_grad = own_grad * factor - offset
            own_grad -= 1.0 - LABEL_SMOOTHING
            if SOFTCAP > 0:
                own_grad *= 1.0 - (own / SOFTCAP) * (own / SOFTCAP)
            tl.store(logits + label, own_grad.to(logits.dtype.element_ty), is_there)


@triton.jit
def _accumulate(largest, total, x):  # type: ignore[no-untyped-def]
    """The maximum and the sum of each group, updated by more logits."""
    new = tl.maximum(largest, tl.max(x.to(tl.float32), axis=1))
    total = total * tl.exp(largest - new) + tl.sum(_exp_difference(x, new[:, None]), axis=1)
    return new, total


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    x, log_total, factor, offset, IS_REGULARIZED: tl.constexpr, SOFTCAP: tl.constexpr
):
    """The gradient of logits that are not the label's, by the logits before the cap."""
    capped = _capped(x, SOFTCAP)
    grad = _exp_difference(capped, log_total)
    if IS_REGULARIZED:
        grad = grad * factor - offset
    if SOFTCAP > 0:
        grad *= 1.0 - (capped / SOFTCAP) * (capped / SOFTCAP)
    return grad.to(x.dtype)


@triton.jit
def _load_capped(logits, at, is_there, SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Capped logits, and -inf where there are none, which a cap would make finite."""
    x = _capped(tl.load(logits + at, is_there, other=-float("inf")), SOFTCAP)
    if SOFTCAP > 0:
        x = tl.where(is_there, x, -float("inf"))
    return x


@triton.jit
def _capped(x, SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The logits themselves without a cap, else the capped logits in float32."""
    if SOFTCAP > 0:
        x = x.to(tl.float32)
        size = tl.abs(x / SOFTCAP)
        shrunk = tl.exp(-2.0 * size)  # tanh, by an exponential that cannot overflow
        tanh = (1.0 - shrunk) / (1.0 + shrunk)
        x = SOFTCAP * tl.where(x < 0, -tanh, tanh)
    return x


@triton.jit
def _exp_difference(x, offset):  # type: ignore[no-untyped-def]
    """`exp(x - offset)`."""
    if x.dtype == tl.float32:
        return tl.exp(x - offset)
    # one instruction fewer, at an error of 2^-24 of `offset`, far below half precision
    return tl.exp2(x.to(tl.float32) * _LOG2E - offset * _LOG2E)

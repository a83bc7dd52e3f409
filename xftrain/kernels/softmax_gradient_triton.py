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
    vocab_size,
    stride,
    IGNORED: tl.constexpr,
    NEEDS_GRAD: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Runs a program per row: a pass for maximum and sum, then one from the cache that writes.

    The kernel is bound by instructions, not by memory. So only the last block of a row is masked,
    exponentials are to base 2, and the label is handled outside the loops.
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
        for start in range(0, whole, BLOCK):
            largest, total = _accumulate(largest, total, tl.load(logits + start + columns))
        if whole < vocab_size:
            at = whole + columns
            rest = tl.load(logits + at, at < vocab_size, other=-float("inf"))
            largest, total = _accumulate(largest, total, rest)
        top = tl.max(largest, axis=0)
        log_total = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
        # a label out of range makes the row NaN, which the guard against NaN reports
        is_there = (label >= 0) & (label < vocab_size)
        own = tl.load(logits + label, is_there, other=float("nan")).to(tl.float32)
        tl.store(losses + row, log_total - own)
        is_first = own == top
        if is_first:
            before = tl.full([groups], LOWEST, tl.float32)
            for begin in range(0, label, BLOCK):
                ahead = begin + columns
                x = tl.load(logits + ahead, ahead < label, other=-float("inf")).to(tl.float32)
                before = tl.maximum(before, tl.max(x, axis=1))
            is_first = tl.max(before, axis=0) < top
        tl.store(correct + row, is_first)
        if NEEDS_GRAD:
            log_total += 0.0 * own
            tl.debug_barrier()  # all reads above precede the writes below
            for start in range(0, whole, BLOCK):
                here = logits + start + columns
                tl.store(here, _softmax(tl.load(here), log_total))
            if whole < vocab_size:
                at = whole + columns
                rest = tl.load(logits + at, at < vocab_size, other=-float("inf"))
                tl.store(logits + at, _softmax(rest, log_total), at < vocab_size)
            tl.debug_barrier()
            own_grad = tl.exp(own - log_total) - 1.0
            tl.store(logits + label, own_grad.to(logits.dtype.element_ty), is_there)


@triton.jit
def _accumulate(largest, total, x):  # type: ignore[no-untyped-def]
    """The maximum and the sum of each group, updated by more logits."""
    new = tl.maximum(largest, tl.max(x.to(tl.float32), axis=1))
    total = total * tl.exp(largest - new) + tl.sum(_exp_difference(x, new[:, None]), axis=1)
    return new, total


@triton.jit
def _softmax(x, log_total):  # type: ignore[no-untyped-def]
    return _exp_difference(x, log_total).to(x.dtype)


@triton.jit
def _exp_difference(x, offset):  # type: ignore[no-untyped-def]
    """`exp(x - offset)`."""
    if x.dtype == tl.float32:
        return tl.exp(x - offset)
    # one instruction fewer, at an error of 2^-24 of `offset`, far below half precision
    return tl.exp2(x.to(tl.float32) * _LOG2E - offset * _LOG2E)

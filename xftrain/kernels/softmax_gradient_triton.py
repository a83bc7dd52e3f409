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
    """One program a row: a pass for the largest and the sum, and one, from the cache, to write.

    What a logit costs is instructions, not memory: so blocks within the row have no mask, powers
    are of 2, and what is about the label alone is done beside the loops.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    # groups of neighbours, which a thread loads at once and has to itself
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
        # each group for itself, and all of them together once at the end: a reduction over threads
        # in every turn of the loop would have the program wait for its slowest warp
        largest = tl.full([groups], LOWEST, tl.float32)  # finite: of -inf alone no NaN is made
        total = tl.zeros([groups], tl.float32)
        for start in range(0, whole, BLOCK):
            largest, total = _added(largest, total, tl.load(logits + start + columns))
        if whole < vocab_size:
            at = whole + columns
            rest = tl.load(logits + at, at < vocab_size, other=-float("inf"))
            largest, total = _added(largest, total, rest)
        top = tl.max(largest, axis=0)
        log_total = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
        # a label that there is not makes the row NaN, which is noticed
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
            tl.debug_barrier()  # all that is read above is read before it is overwritten
            for start in range(0, whole, BLOCK):
                here = logits + start + columns
                tl.store(here, _share(tl.load(here), log_total))
            if whole < vocab_size:
                at = whole + columns
                rest = tl.load(logits + at, at < vocab_size, other=-float("inf"))
                tl.store(logits + at, _share(rest, log_total), at < vocab_size)
            tl.debug_barrier()
            own_share = tl.exp(own - log_total) - 1.0
            tl.store(logits + label, own_share.to(logits.dtype.element_ty), is_there)


@triton.jit
def _added(largest, total, x):  # type: ignore[no-untyped-def]
    """The largest and the sum of each group, with more logits in it."""
    new = tl.maximum(largest, tl.max(x.to(tl.float32), axis=1))
    total = total * tl.exp(largest - new) + tl.sum(_power(x, new[:, None]), axis=1)
    return new, total


@triton.jit
def _share(x, log_total):  # type: ignore[no-untyped-def]
    return _power(x, log_total).to(x.dtype)


@triton.jit
def _power(x, less):  # type: ignore[no-untyped-def]
    """`exp(x - less)`."""
    if x.dtype == tl.float32:
        return tl.exp(x - less)
    # one instruction less, and an error of 2^-24 of `less`, far below what half precision shows
    return tl.exp2(x.to(tl.float32) * _LOG2E - less * _LOG2E)

"""The Triton kernel of `softmax_gradient`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


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
    """One program a row: a pass for the largest and the sum, and one, from the cache, to write."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    # groups of neighbours, which a thread loads at once and has to itself
    groups: tl.constexpr = BLOCK // GROUP
    columns = tl.arange(0, groups)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
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
        for start in range(0, vocab_size, BLOCK):
            at = start + columns
            x = tl.load(logits + at, at < vocab_size, other=-float("inf")).to(tl.float32)
            new = tl.maximum(largest, tl.max(x, axis=1))
            total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new[:, None]), axis=1)
            largest = new
        top = tl.max(largest, axis=0)
        log_total = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
        # a label that there is not makes the row NaN, which is noticed
        is_there = (label >= 0) & (label < vocab_size)
        own = tl.load(logits + label, is_there, other=float("nan")).to(tl.float32)
        tl.store(losses + row, log_total - own)
        first = tl.full([groups], vocab_size, tl.int32)  # of the largest
        tl.debug_barrier()  # `own` is read before it is overwritten
        for start in range(0, vocab_size, BLOCK):
            at = start + columns
            x = tl.load(logits + at, at < vocab_size, other=-float("inf")).to(tl.float32)
            first = tl.minimum(first, tl.min(tl.where(x == top, at, vocab_size), axis=1))
            if NEEDS_GRAD:
                grad = tl.exp(x - log_total) - tl.where(at == label, 1.0, 0.0) + 0.0 * own
                tl.store(logits + at, grad.to(logits.dtype.element_ty), at < vocab_size)
        tl.store(correct + row, tl.min(first, axis=0) == label)

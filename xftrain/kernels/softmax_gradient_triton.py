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
):
    """One program a row: a pass for the largest and the sum, and one, from the cache, to write."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    label = tl.load(labels + row)
    columns = tl.arange(0, BLOCK)
    if label == IGNORED:
        tl.store(losses + row, 0.0)
        tl.store(correct + row, False)
        if NEEDS_GRAD:
            for start in range(0, vocab_size, BLOCK):
                at = start + columns
                tl.store(logits + at, tl.zeros([BLOCK], logits.dtype.element_ty), at < vocab_size)
    else:
        # each lane for itself, and all of them together once at the end: a reduction in every turn
        # of the loop would have the program wait for its slowest warp
        largest = tl.full([BLOCK], LOWEST, tl.float32)  # finite: of -inf alone no NaN is made
        first = tl.zeros([BLOCK], tl.int32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, vocab_size, BLOCK):
            at = start + columns
            x = tl.load(logits + at, at < vocab_size, other=-float("inf")).to(tl.float32)
            new = tl.maximum(largest, x)
            total = total * tl.exp(largest - new) + tl.exp(x - new)
            first = tl.where(x > largest, at, first)
            largest = new
        top = tl.max(largest, axis=0)
        log_total = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
        # a label that there is not makes the row NaN, which is noticed
        is_there = (label >= 0) & (label < vocab_size)
        own = tl.load(logits + label, is_there, other=float("nan")).to(tl.float32)
        tl.store(losses + row, log_total - own)
        tl.store(correct + row, tl.min(tl.where(largest == top, first, vocab_size)) == label)
        if NEEDS_GRAD:
            tl.debug_barrier()  # `own` is read before it is overwritten
            for start in range(0, vocab_size, BLOCK):
                at = start + columns
                x = tl.load(logits + at, at < vocab_size, other=-float("inf")).to(tl.float32)
                grad = tl.exp(x - log_total) - tl.where(at == label, 1.0, 0.0) + 0.0 * own
                tl.store(logits + at, grad.to(logits.dtype.element_ty), at < vocab_size)

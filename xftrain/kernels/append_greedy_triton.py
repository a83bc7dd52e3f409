"""The Triton kernel of `append_greedy_`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


@triton.jit
def append_greedy_kernel(  # type: ignore[no-untyped-def]
    logits,
    drawn,
    columns,
    tokens,
    positions,
    is_finite,
    vocab_size,
    logits_row,
    drawn_row,
    BLOCK: tl.constexpr,
):
    """Runs one program per row."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    place = offsets
    is_bad = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, vocab_size, BLOCK):
        at = begin + offsets
        is_token = at < vocab_size
        found = tl.load(logits + row * logits_row + at, is_token, float("-inf")).to(tl.float32)
        # NaN compares as false
        is_bad |= ((found != found) | (found == float("inf"))).to(tl.int32)
        place = tl.where(found > highest, at, place)
        highest = tl.maximum(highest, found)
    best = tl.max(highest, 0)
    token = tl.min(tl.where(highest == best, place, vocab_size), 0)
    # if all are NaN, any token of the vocabulary will do, since the text is refused
    token = tl.minimum(token, vocab_size - 1).to(tl.int64)
    if (tl.max(is_bad, 0) > 0) | (best == float("-inf")):
        tl.store(is_finite, False)
    column = tl.load(columns + row)
    tl.store(drawn + row * drawn_row + column, token)
    tl.store(tokens + row, token)
    tl.store(columns + row, column + 1)
    tl.store(positions + row, tl.load(positions + row) + 1)

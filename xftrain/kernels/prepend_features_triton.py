"""The Triton kernel of `prepend_features`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


@triton.jit
def prepend_features_kernel(  # type: ignore[no-untyped-def]
    x,
    features,
    joined,
    num_positions,
    num_heads,
    x_batch,
    x_position,
    x_head,
    features_position,
    features_head,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Runs a program per `HEADS` heads of a position; `x_batch` to `features_head` are strides."""
    place = tl.program_id(0).to(tl.int64)
    batch, position = place // num_positions, place % num_positions
    head = tl.program_id(1).to(tl.int64) * HEADS + tl.arange(0, HEADS)[:, None]
    here, to = head < num_heads, joined + (place * num_heads + head) * (WIDTH + K)

    i = tl.arange(0, BLOCK_WIDTH)[None, :]
    start = features + position * features_position + head * features_head
    tl.store(to + i, tl.load(start + i, here & (i < WIDTH)), here & (i < WIDTH))

    i = tl.arange(0, BLOCK_K)[None, :]
    start = x + batch * x_batch + position * x_position + head * x_head
    tl.store(to + WIDTH + i, tl.load(start + i, here & (i < K)), here & (i < K))

"""The Triton kernels of `decode_attention`; nothing else imports them, as they import triton."""

import triton
import triton.language as tl


@triton.jit
def capped(scores, softcap):  # type: ignore[no-untyped-def]
    """softcap * tanh(scores / softcap), by an exponential that cannot overflow."""
    shrunk = tl.exp(-2.0 * tl.abs(scores / softcap))
    size = softcap * (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(scores < 0, -size, size)


@triton.jit
def split_kernel(  # type: ignore[no-untyped-def]
    q,
    new_k,
    new_v,
    k,
    v,
    positions,
    slopes,
    parts,
    sums,
    scale,
    softcap,
    num_slots,
    num_splits,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    G: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_PRECISE: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Runs one program per row, group of heads, and split of the row's slots.

    It writes the softmax-weighted sum of the values of its slots, and the highest score and the sum
    of exponentials, with which `join_kernel` weights the splits. The program whose split has the
    slot of the new token stores its key and value there; no program reads that slot.
    """
    row, group = tl.program_id(0) // G, tl.program_id(0) % G
    split = tl.program_id(1)
    position = tl.load(positions + row)
    num_used = tl.minimum(position + 1, num_slots).to(tl.int32)
    # the used slots are divided into blocks, and these among the splits
    blocks_of_split = tl.cdiv(tl.cdiv(num_used, BLOCK), num_splits)
    first = split * blocks_of_split * BLOCK
    last = tl.minimum(num_used, first + blocks_of_split * BLOCK)

    heads, features = tl.arange(0, GROUP_BLOCK), tl.arange(0, WIDTH)
    head_of_q = row * G * GROUP + group * GROUP + heads
    new_slot = (position % num_slots).to(tl.int32)
    is_head, is_feature = heads < GROUP, features < K
    is_q = is_head[:, None] & is_feature[None, :]
    at_q = row * q_row + (group * GROUP + heads) * q_head
    queries = tl.load(q + at_q[:, None] + features[None, :], is_q, 0.0)
    new_key = tl.load(new_k + row * k_row + group * k_head + features, is_feature, 0.0)
    new_value = tl.load(new_v + row * v_row + group * v_head + features, is_feature, 0.0)
    if HAS_SLOPES:
        slope = tl.load(slopes + group * GROUP + heads, is_head, 0.0)

    # the new token first, so that the loop only loads, which the compiler overlaps with the matmuls
    has_new = (new_slot >= first) & (new_slot < last)
    start = row.to(tl.int64) * num_slots
    at_new = ((start + new_slot) * G + group) * K + features
    tl.store(k + at_new, new_key, is_feature & has_new)
    tl.store(v + at_new, new_value, is_feature & has_new)
    score = tl.sum(queries.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
    if HAS_SOFTCAP:
        score = capped(score, softcap)
    highest = tl.where(has_new, score, float("-inf"))
    total = tl.zeros([GROUP_BLOCK], tl.float32) + tl.where(has_new, 1.0, 0.0)
    out = tl.zeros([GROUP_BLOCK, WIDTH], tl.float32)
    out += tl.where(has_new, new_value.to(tl.float32), 0.0)[None, :]

    for begin in range(first, last, BLOCK):
        slots = begin + tl.arange(0, BLOCK)
        is_old = (slots < last) & (slots != new_slot)
        at = ((start + slots)[:, None] * G + group) * K + features[None, :]
        is_kv = is_old[:, None] & is_feature[None, :]
        keys = tl.load(k + at, is_kv, 0.0)
        if IS_PRECISE:
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        else:
            scores = tl.dot(queries, tl.trans(keys)) * scale
        if HAS_SOFTCAP:
            scores = capped(scores, softcap)
        if HAS_SLOPES:
            ahead = position - slots
            distance = tl.where(ahead >= 0, ahead % num_slots, (ahead + num_slots) % num_slots)
            scores -= slope[:, None] * distance[None, :].to(tl.float32)
        scores = tl.where(is_old[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp(highest - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(v + at, is_kv, 0.0)
        if IS_PRECISE:
            added = tl.dot(weights, values, input_precision="ieee")
        else:
            added = tl.dot(weights.to(values.dtype), values)
        out = out * shrink[:, None] + added
        highest = higher

    place = head_of_q * num_splits + split
    tl.store(sums + 2 * place, highest, is_head)
    tl.store(sums + 2 * place + 1, total, is_head)
    tl.store(parts + place[:, None] * K + features[None, :], out, is_q)


@triton.jit
def join_kernel(  # type: ignore[no-untyped-def]
    parts,
    sums,
    out,
    num_splits,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Runs one program per row and head, which adds up the splits."""
    head, splits, features = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    is_split, is_feature = splits < num_splits, features < K
    place = head * num_splits + splits
    highest = tl.load(sums + 2 * place, is_split, float("-inf"))
    total = tl.load(sums + 2 * place + 1, is_split, 0.0)
    # a split without slots has -inf and weighs nothing; the first one has a slot
    weight = tl.exp(highest - tl.max(highest, 0))
    at = place[:, None] * K + features[None, :]
    part = tl.load(parts + at, is_split[:, None] & is_feature[None, :], 0.0)
    joined = tl.sum(part * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + head * K + features, joined.to(out.dtype.element_ty), is_feature)

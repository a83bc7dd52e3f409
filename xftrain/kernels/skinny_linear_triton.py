"""The Triton kernel of `skinny_linear`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


@triton.jit
def linear_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    norm_weight,
    of_mean,
    residual,
    out,
    num_rows,
    num_out,
    eps,
    I: tl.constexpr,  # noqa: E741
    HAS_NORM: tl.constexpr,
    IS_CENTERED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Runs one program per block of output columns, which reads its rows of the weight once.

    A norm is applied to the result, as mean and deviation of a row are known only at the end; see
    `SkinnyWeights`.
    """
    rows, columns = tl.arange(0, ROWS), tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_row, is_column = rows < num_rows, columns < num_out
    features = tl.arange(0, BLOCK_I)
    result = tl.zeros([ROWS, BLOCK_O], tl.float32)
    value = tl.zeros([ROWS, BLOCK_O], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    at_weight = weight + columns[:, None].to(tl.int64) * I + features[None, :]
    second = num_out.to(tl.int64) * I  # from the rows of the gate to those of the value
    for begin in range(0, I, BLOCK_I):
        is_feature = begin + features < I
        is_weight = is_column[:, None] & is_feature[None, :]
        tile = tl.load(at_weight + begin, is_weight, 0.0)
        is_x = is_row[:, None] & is_feature[None, :]
        content = tl.load(x + rows[:, None] * I + begin + features[None, :], is_x, 0.0)
        if HAS_NORM:
            scale = tl.load(norm_weight + begin + features, is_feature, 0.0).to(tl.float32)
            wide = content.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            if IS_CENTERED:
                total += tl.sum(wide, 1)
            content = (wide * scale[None, :]).to(tile.dtype)
        result += tl.dot(content, tl.trans(tile))
        if IS_GATED:
            second_tile = tl.load(at_weight + second + begin, is_weight, 0.0)
            value += tl.dot(content, tl.trans(second_tile))
    if HAS_NORM:
        square = squares / I
        if IS_CENTERED:
            mean = total / I
            square = tl.maximum(square - mean * mean, 0.0)
            by_mean = tl.load(of_mean + columns, is_column, 0.0)
            result -= mean[:, None] * by_mean[None, :]
            if IS_GATED:
                by_mean = tl.load(of_mean + num_out + columns, is_column, 0.0)
                value -= mean[:, None] * by_mean[None, :]
        inverse = tl.rsqrt(square + eps)[:, None]
        result *= inverse
        value *= inverse
    if HAS_BIAS:
        result += tl.load(bias + columns, is_column, 0.0).to(tl.float32)[None, :]
        if IS_GATED:
            value += tl.load(bias + num_out + columns, is_column, 0.0).to(tl.float32)[None, :]
    if ACTIVATION == "silu":
        result = result / (1.0 + tl.exp(-result))
    elif ACTIVATION == "gelu_tanh":
        inner = 1.5957691216057308 * result * (1.0 + 0.044715 * result * result)
        result = result / (1.0 + tl.exp(-inner))
    elif ACTIVATION == "gelu":
        result = 0.5 * result * (1.0 + tl.erf(result * 0.7071067811865476))
    elif ACTIVATION == "relu2":
        result = tl.maximum(result, 0.0)
        result = result * result
    if IS_GATED:
        result *= value
    at = rows[:, None] * num_out + columns[None, :]
    is_out = is_row[:, None] & is_column[None, :]
    if HAS_RESIDUAL:
        result += tl.load(residual + at, is_out, 0.0).to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), is_out)

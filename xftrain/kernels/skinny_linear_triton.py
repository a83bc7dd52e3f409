"""The Triton kernel of `skinny_linear`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


@triton.jit
def _product(rows, tile):  # type: ignore[no-untyped-def]
    return tl.dot(rows, tl.trans(tile))


@triton.jit
def linear_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    residual,
    out,
    num_rows,
    num_out,
    eps,
    I: tl.constexpr,  # noqa: E741
    HAS_NORM: tl.constexpr,
    IS_CENTERED: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    IS_GATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Runs one program per block of output columns, which reads its rows of the weight once."""
    rows, columns = tl.arange(0, ROWS), tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_row, is_column = rows < num_rows, columns < num_out
    features = tl.arange(0, BLOCK_I)
    result = tl.zeros([ROWS, BLOCK_O], tl.float32)
    value = tl.zeros([ROWS, BLOCK_O], tl.float32)
    at_weight = weight + columns[:, None].to(tl.int64) * I + features[None, :]
    second = num_out.to(tl.int64) * I  # from the rows of the gate to those of the value
    if HAS_NORM:
        is_feature = features < I
        is_weight = is_column[:, None] & is_feature[None, :]
        # before the rows, so that the weight is on its way while they are normalized
        tile = tl.load(at_weight, is_weight, 0.0)
        if IS_GATED:
            second_tile = tl.load(at_weight + second, is_weight, 0.0)
        scale = tl.load(norm_weight + features, is_feature, 0.0).to(tl.float32)
        is_x = is_row[:, None] & is_feature[None, :]
        content = tl.load(x + rows[:, None] * I + features[None, :], is_x, 0.0).to(tl.float32)
        if IS_CENTERED:
            mean = tl.sum(content, 1) / I
            content = tl.where(is_x, content - mean[:, None], 0.0)
        square = tl.sum(content * content, 1) / I
        content = content * tl.rsqrt(square + eps)[:, None] * scale[None, :]
        if HAS_NORM_BIAS:
            shift = tl.load(norm_bias + features, is_feature, 0.0).to(tl.float32)
            content += shift[None, :]
        normalized = content.to(tile.dtype)
        result = _product(normalized, tile)
        if IS_GATED:
            value = _product(normalized, second_tile)
    else:
        for begin in range(0, I, BLOCK_I):
            is_feature = begin + features < I
            is_weight = is_column[:, None] & is_feature[None, :]
            tile = tl.load(at_weight + begin, is_weight, 0.0)
            is_x = is_row[:, None] & is_feature[None, :]
            content = tl.load(x + rows[:, None] * I + begin + features[None, :], is_x, 0.0)
            result += _product(content, tile)
            if IS_GATED:
                value += _product(content, tl.load(at_weight + second + begin, is_weight, 0.0))
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

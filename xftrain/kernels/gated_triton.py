"""The Triton kernel of `gated`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


@triton.jit
def gated_kernel(  # type: ignore[no-untyped-def]
    h,
    grad,
    out,
    grad_h,
    width,
    HAS_GRAD: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Runs one program per block of a row, which reads and writes each element once.

    `h` and `grad_h` hold gate and value side by side, each `width` elements wide.
    """
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < width
    gate = tl.load(h + row * 2 * width + at, here).to(tl.float32)
    value = tl.load(h + row * 2 * width + width + at, here).to(tl.float32)
    if GATE == "silu":
        share = 1.0 / (1.0 + tl.exp(-gate))
        slope = share * (1.0 + gate * (1.0 - share))
    else:
        square = gate * gate
        inner = 1.5957691216057308 * gate * (1.0 + 0.044715 * square)  # twice tanh's argument
        share = 1.0 / (1.0 + tl.exp(-inner))  # (1 + tanh) / 2
        inner_slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
        slope = share + gate * share * (1.0 - share) * inner_slope
    activated = gate * share
    tl.store(out + row * width + at, (activated * value).to(out.dtype.element_ty), here)
    if HAS_GRAD:
        g = tl.load(grad + row * width + at, here).to(tl.float32)
        kind = grad_h.dtype.element_ty
        tl.store(grad_h + row * 2 * width + at, (g * value * slope).to(kind), here)
        tl.store(grad_h + row * 2 * width + width + at, (g * activated).to(kind), here)

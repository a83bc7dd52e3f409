"""The Triton kernel of `adamw`; nothing else imports it, as it imports triton."""

import triton
import triton.language as tl


@triton.jit
def adamw_kernel(  # type: ignore[no-untyped-def]
    weight,
    grad,
    exp_avg,
    exp_avg_sq,
    copy,
    step,
    lr,
    clip,
    skip,
    num_elements,
    beta1,
    beta2,
    eps,
    weight_decay,
    HAS_COPY: tl.constexpr,
    HAS_CLIP: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Runs one program per block, which reads the gradient, and reads and writes the rest, once."""
    skips = False
    if HAS_SKIP:
        skips = tl.load(skip) != 0.0
    if not skips:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        here = at < num_elements
        g = tl.load(grad + at, here).to(tl.float32)
        if HAS_CLIP:
            g *= tl.load(clip)
        w = tl.load(weight + at, here)
        m = tl.load(exp_avg + at, here)
        v = tl.load(exp_avg_sq + at, here)
        lr_value = tl.load(lr)
        # 1 - beta^step, which in float32 would lose half of its digits at the first steps
        num_steps = tl.load(step).to(tl.float64)
        correction1 = 1.0 - tl.exp(num_steps * tl.log(tl.full([], beta1, tl.float64)))
        correction2 = 1.0 - tl.exp(num_steps * tl.log(tl.full([], beta2, tl.float64)))
        step_size = (lr_value.to(tl.float64) / correction1).to(tl.float32)
        root2 = tl.sqrt(correction2).to(tl.float32)
        m = beta1 * m + (1.0 - beta1) * g
        v = beta2 * v + (1.0 - beta2) * g * g
        w -= lr_value * weight_decay * w
        w -= step_size * m / (tl.sqrt(v) / root2 + eps)
        tl.store(exp_avg + at, m, here)
        tl.store(exp_avg_sq + at, v, here)
        tl.store(weight + at, w, here)
        if HAS_COPY:
            tl.store(copy + at, w.to(copy.dtype.element_ty), here)

"""Autotuned matmuls: the fastest algorithm of cuBLASLt for each shape, as measured.

torch takes the first algorithm that cuBLASLt's heuristic proposes. On an H100 another proposal is
up to 16 % faster, and which one differs by shape. Training runs the same matmuls thousands of
times, so each shape is measured once, up to `_MOST_CHOICES` shapes.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from xftrain.kernels.cublaslt import CublasError, Epilogue, Plan, has_cublaslt, is_supported
from xftrain.kernels.saved_matmul import (
    Choice,
    Key,
    algorithm_names,
    describe_matmul,
    find_proposal,
)
from xftrain.utils.timing import interleaved_times_ms

log = logging.getLogger(__name__)

_MIN_FLOP = 1e10  # about 15 us on an H100; below, the overhead of Python shows
_MAX_CHOICES = 48  # measured shapes in one run; packed batches may have new sizes at every step
_MAX_TIME_RATIO = 0.99  # to torch's time, for another algorithm to be chosen
_ROUNDS, _LAUNCHES = 3, 5

Call = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]


class Autotuner:
    """The algorithms of one run's matmuls, each measured at its first use.

    Args:
        saved: `algorithm_names()` of the resumed run, whose matmuls are not measured again.
    """

    def __init__(self, saved: Mapping[str, str | None] | None = None) -> None:
        self.choices: dict[Key, Choice | None] = {}
        self._saved = dict(saved or {})

    def algorithm_names(self) -> dict[str, str | None]:
        """The algorithm of each matmul so far, by name; None for torch's. A checkpoint saves it."""
        return {**self._saved, **algorithm_names(self.choices)}

    def fastest_call(
        self, epilogue: Epilogue, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None
    ) -> Call:
        """The fastest call for operands like these; measuring it overwrites `out`."""
        with_torch = partial(_with_torch, epilogue)
        key = (epilogue, a.device, a.dtype, a.shape, a.stride(), b.shape, b.stride())
        if key not in self.choices:
            # timing is impossible while a CUDA graph is captured
            if len(self.choices) >= _MAX_CHOICES or torch.cuda.is_current_stream_capturing():
                return with_torch
            self.choices[key] = self._first_choice(key, a, b, out, second, with_torch)
        chosen = self.choices[key]
        return with_torch if chosen is None else partial(chosen.plan.launch, chosen.number)

    def _first_choice(
        self, key: Key, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None, with_torch: Call
    ) -> Choice | None:
        """The algorithm of the resumed run, else the fastest one; None means torch."""
        epilogue, description = key[0], describe_matmul(key)
        if description in self._saved:
            name = self._saved[description]
            if name is None:
                return None
            if (choice := find_proposal(name, epilogue, a, b, out, second)) is not None:
                return choice
            log.info(
                "matmul: measured again, as this cuBLASLt lacks the checkpoint's algorithm: %s",
                description,
            )
        return _fastest_algorithm(epilogue, a, b, out, second, with_torch)


class _Setting:
    """The autotuner of this process's run; None leaves large matmuls to torch."""

    tuner: Autotuner | None = None


# Of the process, like torch's own matmul settings: custom operators take only tensors, and run in
# threads of autograd as well.
_setting = _Setting()


@contextmanager
def autotuner_set(tuner: Autotuner | None) -> Iterator[None]:
    """Within this context, large matmuls use the algorithms of this autotuner; None is torch's.

    Compiled code keeps the setting that it was compiled under, until `torch._dynamo.reset()`.
    """
    before, _setting.tuner = _setting.tuner, tuner
    try:
        yield
    finally:
        _setting.tuner = before


@torch.compiler.assume_constant_result
def is_autotuning() -> bool:
    """Whether large matmuls are autotuned, which deterministic runs rule out."""
    is_on = _setting.tuner is not None and not torch.are_deterministic_algorithms_enabled()
    return is_on and has_cublaslt()


def is_large(num_rows: int, num_inner: int, num_columns: int) -> bool:
    """Whether a matmul is large enough to be autotuned."""
    return 2.0 * num_rows * num_inner * num_columns >= _MIN_FLOP


def matmul_(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Writes `a @ b` to `out`, by the fastest algorithm.

    Args:
        a: [M, K].
        b: [K, N].
        out: [M, N], contiguous, in the dtype of a and b.
    """
    _multiply(Epilogue.NONE, a, b, out, None)
    return out


@torch.library.custom_op("xftrain::linear", mutates_args=())
def linear(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """`x weight^T`, [N, O]."""
    out_NO = x_NI.new_empty(x_NI.shape[0], weight_OI.shape[0])
    return matmul_(x_NI, weight_OI.t(), out_NO)


@linear.register_fake
def _(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    return x_NI.new_empty(x_NI.shape[0], weight_OI.shape[0])


@torch.library.custom_op("xftrain::linear_input_gradient", mutates_args=())
def linear_input_gradient(grad_NO: Tensor, weight_OI: Tensor) -> Tensor:
    """`grad weight`, [N, I]."""
    out_NI = grad_NO.new_empty(grad_NO.shape[0], weight_OI.shape[1])
    return matmul_(grad_NO.contiguous(), weight_OI, out_NI)


@linear_input_gradient.register_fake
def _(grad_NO: Tensor, weight_OI: Tensor) -> Tensor:
    return grad_NO.new_empty(grad_NO.shape[0], weight_OI.shape[1])


@torch.library.custom_op("xftrain::linear_gelu", mutates_args=())
def linear_gelu(x_NI: Tensor, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """`gelu(h)` and `h = x weight^T`, each [N, O]; GELU in its tanh form, of h in float32."""
    sizes = x_NI.shape[0], weight_OI.shape[0]
    out_NO, h_NO = x_NI.new_empty(sizes), x_NI.new_empty(sizes)
    _multiply(Epilogue.GELU, x_NI, weight_OI.t(), out_NO, h_NO)
    return out_NO, h_NO


@linear_gelu.register_fake
def _(x_NI: Tensor, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    sizes = x_NI.shape[0], weight_OI.shape[0]
    return x_NI.new_empty(sizes), x_NI.new_empty(sizes)


@torch.library.custom_op("xftrain::gelu_linear", mutates_args=())
def gelu_linear(gelu_NI: Tensor, h_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """`gelu weight^T`, [N, O], for both outputs of `linear_gelu`; its gradient goes to h."""
    return matmul_(gelu_NI, weight_OI.t(), gelu_NI.new_empty(len(gelu_NI), len(weight_OI)))


@gelu_linear.register_fake
def _(gelu_NI: Tensor, h_NI: Tensor, weight_OI: Tensor) -> Tensor:
    return gelu_NI.new_empty(len(gelu_NI), len(weight_OI))


@torch.library.custom_op("xftrain::gelu_linear_gradient", mutates_args=())
def gelu_linear_gradient(grad_NI: Tensor, weight_IO: Tensor, h_NO: Tensor) -> Tensor:
    """`(grad weight) gelu'(h)`, [N, O], the gradient of h through `gelu(h) weight^T`."""
    out_NO = torch.empty_like(h_NO)
    _multiply(Epilogue.GELU_GRADIENT, grad_NI.contiguous(), weight_IO, out_NO, h_NO)
    return out_NO


@gelu_linear_gradient.register_fake
def _(grad_NI: Tensor, weight_IO: Tensor, h_NO: Tensor) -> Tensor:
    return torch.empty_like(h_NO)


_forward = [torch.ops.xftrain.linear, torch.ops.xftrain.linear_gelu]
_backward = [torch.ops.xftrain.linear_input_gradient, torch.ops.xftrain.gelu_linear_gradient]
MATMULS = (*_forward, torch.ops.xftrain.gelu_linear, *_backward)  # this file's matmul operators


@register_flop_formula(_forward)
def _(x_shape: torch.Size, weight_shape: torch.Size, **_: object) -> int:
    return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(torch.ops.xftrain.gelu_linear)
def _(gelu_shape: torch.Size, _: torch.Size, weight_shape: torch.Size, **__: object) -> int:
    return 2 * gelu_shape[0] * weight_shape[0] * weight_shape[1]


@register_flop_formula(_backward)
def _(grad_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * grad_shape[0] * weight_shape[0] * weight_shape[1]


def _with_torch(
    epilogue: Epilogue, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None
) -> None:
    if second is None:
        torch.mm(a, b, out=out)
    elif epilogue == Epilogue.GELU:
        torch.mm(a, b, out=second)
        torch.ops.aten.gelu.out(second, approximate="tanh", out=out)
    else:
        torch.mm(a, b, out=out)
        torch.ops.aten.gelu_backward.grad_input(out, second, approximate="tanh", grad_input=out)


def _multiply(epilogue: Epilogue, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None) -> None:
    _call_for(epilogue, a, b, out, second)(a, b, out, second)


def _call_for(epilogue: Epilogue, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None) -> Call:
    operands = [a, b, out] if second is None else [a, b, out, second]
    is_tuned = is_large(a.shape[0], *b.shape) and is_supported(*operands) and is_autotuning()
    tuner = _setting.tuner
    if tuner is None or not is_tuned:
        return partial(_with_torch, epilogue)
    return tuner.fastest_call(epilogue, a, b, out, second)


def _fastest_algorithm(
    epilogue: Epilogue,
    a: Tensor,
    b: Tensor,
    out: Tensor,
    second: Tensor | None,
    with_torch: Call,
) -> Choice | None:
    """The fastest algorithm for these operands, None for torch; overwrites `out`."""
    try:
        plan = Plan(a, b, epilogue)
    except CublasError as error:
        log.debug("matmul: %s for %s", error, epilogue.name)
        return None
    calls: list[Call] = [with_torch]
    choices: list[Choice | None] = [None]
    for index in range(len(plan.proposals)):
        try:
            plan.launch(index, a, b, out, second)
        except CublasError:
            continue
        calls.append(partial(plan.launch, index))
        choices.append(Choice(plan, index))
    once = [partial(_time_ms, partial(call, a, b, out, second)) for call in calls]
    series = interleaved_times_ms(once, budget_s=0.0, min_repeats=_ROUNDS, max_repeats=_ROUNDS)
    medians = [statistics.median(times) for times in series]
    best = min(range(len(calls)), key=medians.__getitem__)
    log.debug(
        "matmul: %s x %s, %s: %.3f ms with torch, %.3f ms with the fastest of %d",
        *(tuple(a.shape), tuple(b.shape), epilogue.name),
        *(medians[0], medians[best], len(calls)),
    )
    return choices[best] if medians[best] < _MAX_TIME_RATIO * medians[0] else None


def _time_ms(call: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_LAUNCHES):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / _LAUNCHES

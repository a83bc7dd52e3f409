"""Measures attention calls: the memory of each call alone, the times of several calls in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xftrain.benchmark.cells import AttentionCell
from xftrain.benchmark.measure import Stopwatch, measure_memory, settle, spread, warm_up
from xftrain.benchmark.reference import RESULTS, exact, output_and_grads, ratio, relative_error
from xftrain.benchmark.worker import Reporter, Unsupported, free_memory, outcome
from xftrain.interfaces import AttnBias, AttnCall, AttnShape, Backend
from xftrain.model.attn.naive import Naive
from xftrain.model.attn.sdpa import SDPA
from xftrain.utils.timing import interleaved_times_ms, synchronize, wall_ms

_BUDGET_S = 0.2  # timing budget per cell and direction
_MIN_REPEATS, _MAX_REPEATS = 3, 50
_MEMORY_SHARE = 0.6  # share of the memory that cells measured in turns may use together
_FORWARD, _BACKWARD = 2, 5  # M x M x K matmuls: q k^T and p v; q k^T again and four gradients


@dataclass
class _BoundCall:
    """The inputs and the kernel of a cell."""

    backend: Backend
    handle: Any
    inputs: tuple[Tensor, Tensor, Tensor]
    grad: Tensor

    def forward(self) -> Tensor:
        """Runs the forward pass as in training, which saves activations."""
        return self.backend(*self.inputs, self.handle)

    def both(self) -> tuple[Tensor, ...]:
        """Runs forward and backward."""
        return torch.autograd.grad(self.forward(), self.inputs, self.grad)

    def loop(self) -> None:
        """Runs forward and backward as a script would, with gradients accumulated in `.grad`."""
        self.forward().sum().backward()


def measure_attention(cells: Sequence[AttentionCell], reporter: Reporter) -> None:
    """Measures the cells of one job, which have the same sizes, and reports their rows."""
    warm_up(cells[0].torch_device)
    rows: dict[int, dict[str, Any]] = {}
    for index, cell in enumerate(cells):
        row = reporter.attempt(index, _memory_and_errors, cell)
        if row is not None and not cell.is_timed:
            reporter.row(index, "ok", **row)
        elif row is not None:
            rows[index] = row
    for turn in _turns(rows, cells[0].torch_device):
        times = _time(cells, turn, reporter)
        for index, fields in times.items():
            reporter.row(index, "ok", **rows[index], **fields)
        free_memory()


def _turns(rows: dict[int, dict[str, Any]], device: torch.device) -> list[list[int]]:
    """Groups the cells that are timed in turns, as many as fit into memory together."""
    total_mib = float("inf")
    if device.type == "cuda":
        total_mib = torch.cuda.get_device_properties(device).total_memory / 2**20
    turns: list[list[int]] = []
    inputs_mib = most = 0.0
    for index, row in rows.items():
        needs, extra = row["inputs_mib"] + (row["mask_mib"] or 0), row["extra_mib"] or 0
        most = max(most, extra)
        if not turns or inputs_mib + needs + most > _MEMORY_SHARE * total_mib:
            turns.append([])
            inputs_mib, most = 0.0, extra
        turns[-1].append(index)
        inputs_mib += needs
    return turns


def _memory_and_errors(cell: AttentionCell) -> dict[str, Any]:
    """Measures all fields of a row except the times."""
    call, backend = cell.call(), cell.build_backend()
    device = call.device
    if reasons := backend.unsupported_reasons(call):
        raise Unsupported("; ".join(reasons))
    prepare = partial(backend.prepare, *call)
    bound = _BoundCall(backend, prepare(), *_inputs(call))
    bound.both()  # warm-up: loads kernels and compiles
    bound.handle = None
    memory = measure_memory(prepare, partial(_with_handle, bound), device)
    mask_times = [wall_ms(prepare, device) for _ in range(5)]
    pairs = visible_pairs(call.bias, cell.shape.M)
    row = {
        "kernel": backend.kernel_name(call),
        "inputs_mib": sum(x.nbytes for x in (*bound.inputs, bound.grad)) / 2**20,
        "extra_mib": memory.extra_mib,
        "peak_mib": memory.peak_mib,
        "mask_mib": memory.mask_mib,
        **spread("mask_ms", mask_times),
        "gflop": 2 * (_FORWARD + _BACKWARD) * cell.shape.B * cell.shape.H * pairs * cell.shape.K
        / 1e9,
    }  # fmt: skip
    if cell.check == "loop":
        bound.handle = prepare()
        return row | {"loop_peak_mib": _loop_peak_mib(bound, device)}
    if cell.check == "exact":
        return row | errors(backend, call._replace(shape=_one_row(call.shape)))
    if cell.check == "segments":
        return row | _segment_errors(backend, call)
    return row


def _loop_peak_mib(call: _BoundCall, device: torch.device) -> float | None:
    """Peak memory of a loop of calls, MiB; None if only single calls fit."""
    try:
        call.loop()  # allocates `.grad`, which exists in all but a script's first call
        return measure_memory(lambda: None, lambda _: call.loop(), device).peak_mib
    except Exception as error:
        if outcome(error)[0] != "oom":
            raise
    free_memory()
    return None


def fits(cell: AttentionCell) -> bool:
    """Whether the call runs, forward and backward, within memory."""
    if reasons := cell.build_backend().unsupported_reasons(cell.call()):
        raise Unsupported("; ".join(reasons))
    try:
        build_call(cell).both()
        synchronize(cell.torch_device)
    except Exception as error:
        if outcome(error)[0] != "oom":
            raise
        return False
    finally:
        free_memory()
    return True


def _with_handle(call: _BoundCall, handle: Any) -> None:
    call.handle = handle
    call.both()
    call.handle = None


def _time(
    cells: Sequence[AttentionCell], turn: Sequence[int], reporter: Reporter
) -> dict[int, dict[str, Any]]:
    """Times some cells in turns, by index; cells that fail report their row here."""
    device = cells[0].torch_device
    settle(device)
    stopwatch = Stopwatch(device)
    calls = {
        index: made for index in turn if (made := reporter.attempt(index, build_call, cells[index]))
    }
    failed: set[int] = set()

    def once(index: int, timed: Any) -> float:
        if index in failed:
            return 0.0
        ms: float | None = reporter.attempt(index, timed)
        if ms is None:
            failed.add(index)
        return ms or 0.0

    timed = [
        partial(once, index, stopwatch.once(call))
        for index, made in calls.items()
        for call in (made.forward, made.both)
    ]
    series = interleaved_times_ms(
        timed, budget_s=_BUDGET_S, min_repeats=_MIN_REPEATS, max_repeats=_MAX_REPEATS
    )
    found: dict[int, dict[str, Any]] = {}
    for position, (index, made) in enumerate(calls.items()):
        if index in failed:
            continue
        fields = spread("fwd_ms", series[2 * position]) | spread("ms", series[2 * position + 1])
        fields["repetitions"] = len(series[2 * position + 1])
        loops = reporter.attempt(index, _loop_times, stopwatch, made, fields["ms"])
        if loops is not None:
            found[index] = fields | loops
    return found


def _loop_times(stopwatch: Stopwatch, call: _BoundCall, estimate_ms: float) -> dict[str, Any]:
    """Times back-to-back calls on a GPU; empty if their gradients do not fit."""
    if stopwatch.device.type != "cuda":
        return {"loop_ms": None}
    try:
        return spread("loop_ms", stopwatch.loops_ms(call.loop, estimate_ms))
    except Exception as error:
        if outcome(error)[0] != "oom":
            raise
    free_memory()
    return {"loop_ms": None}


def build_call(cell: AttentionCell) -> _BoundCall:
    """Builds a cell's call with new random inputs."""
    call, backend = cell.call(), cell.build_backend()
    return _BoundCall(backend, backend.prepare_handle(call), *_inputs(call))


def _inputs(call: AttnCall) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """q, k and v that require gradients, and the gradient of the output."""
    (q, k, v), grad = _random_qkv(call)
    return (q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), grad


def errors(backend: Backend, call: AttnCall) -> dict[str, Any]:
    """Measures relative errors of the output and of each gradient against float64."""
    qkv, grad = _random_qkv(call)
    handle = backend.prepare_handle(call)
    results = output_and_grads(_bound(backend, handle), qkv, grad)
    truth = output_and_grads(
        lambda q, k, v: exact(q, k, v, call.bias), tuple(x.double() for x in qkv), grad.double()
    )
    pairs = zip(RESULTS, results, truth, strict=True)
    return {f"error_{name}": relative_error(mine, right) for name, mine, right in pairs}


def _segment_errors(backend: Backend, call: AttnCall) -> dict[str, Any]:
    """Measures the largest error of packed documents, and of the same documents run one by one."""
    bias, shape, dtype, device = call
    qkv, grad = _random_qkv(call)
    handle = backend.prepare_handle(call)
    packed = output_and_grads(_bound(backend, handle), qkv, grad)
    single = backend
    if backend.needs_compilation:  # it would compile for every length: use another backend
        single = Naive() if SDPA().unsupported_reasons(call) else SDPA()
    truths, alone_results = [], []
    documents = zip(bias.segments(shape.M), bias.documents(shape.M), strict=True)
    for (start, end), (_, alone_bias) in documents:
        part, part_grad = tuple(x[:, start:end] for x in qkv), grad[:, start:end]
        exactly = partial(exact, bias=alone_bias)
        wide = tuple(x.double() for x in part)
        truths.append(output_and_grads(exactly, wide, part_grad.double()))
        alone_shape = AttnShape(1, end - start, shape.H, shape.G, shape.K)
        alone_handle = single.prepare_handle(AttnCall(alone_bias, alone_shape, dtype, device))
        alone_results.append(output_and_grads(_bound(single, alone_handle), part, part_grad))
    worst_packed = worst_alone = 0.0
    for index, mine in enumerate(packed):
        whole = torch.cat([truth[index] for truth in truths], dim=1).square().mean().sqrt()
        for (start, end), truth, alone in zip(
            bias.segments(shape.M), truths, alone_results, strict=True
        ):
            right = truth[index]
            # a single token attends to itself whatever q and k are: their gradients are 0
            size = right.norm().clamp(min=float(whole) * right.numel() ** 0.5)
            worst_packed = max(worst_packed, _error(mine[:, start:end], right, size))
            worst_alone = max(worst_alone, _error(alone[index], right, size))
    return {"error_packed": worst_packed, "error_alone": worst_alone}


def _error(value: Tensor, truth: Tensor, size: Tensor) -> float:
    return ratio(float((value - truth).norm()), float(size))


def _bound(backend: Backend, handle: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: backend(q, k, v, handle)


def _random_qkv(call: AttnCall) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Draws q, k, v and the gradient of the output."""
    _, shape, dtype, device = call
    q, k, v, grad = (
        torch.randn(shape.B, shape.M, heads, shape.K, device=device).to(dtype)
        for heads in (shape.H, shape.G, shape.G, shape.H)
    )
    return (q, k, v), grad


def _one_row(shape: AttnShape) -> AttnShape:
    """The shape with one row, which suffices for the float64 reference."""
    return AttnShape(1, shape.M, shape.H, shape.G, shape.K)


def visible_pairs(bias: AttnBias, num_positions: int) -> int:
    """The number of unmasked pairs of query and key, which every kernel must compute."""
    pairs = 0
    for start, end in bias.segments(num_positions):
        length = end - start
        if not bias.causal:
            pairs += length**2
            continue
        window = min(bias.window or length, length)
        pairs += window * length - window * (window - 1) // 2
    return pairs

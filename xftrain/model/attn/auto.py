"""Times the backends that can compute this run's attention calls, and chooses the fastest.

Timings are not cached on disk, where they would go stale, and nothing is compiled only to be timed.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xftrain.interfaces import (
    Attention,
    AttnCall,
    AttnCase,
    Backend,
    ChoosingBackend,
)
from xftrain.model.backends import all_backends, kernel_name
from xftrain.utils.timing import interleaved_times_ms, wall_ms

log = logging.getLogger(__name__)

_BUDGET_S = 1.0  # timing budget per backend
_MIN_REPEATS, _MAX_REPEATS = 3, 30


@dataclass(frozen=True)
class Trial:
    """One row of the timing table: a backend's median time, or why it was not timed."""

    name: str
    kernel: str
    ms: float | None
    reason: str = ""


class Auto(ChoosingBackend):
    """Chooses the backend that is fastest for the first batch, and uses it from then on."""

    name = "auto"
    takes_scale = takes_softcap = True  # candidates that take neither are excluded

    def __init__(self) -> None:
        self.chosen: Backend | None = None
        self.trials: list[Trial] = []

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """The reasons of all candidates; empty if any candidate can run the call."""
        reasons: list[str] = []
        for backend in [self.chosen] if self.chosen else _candidates():
            why = backend.unsupported_reasons(call, needs_grad=needs_grad)
            if not why:
                return []
            reasons += [f"{backend.name}: {reason}" for reason in why]
        return reasons

    def handle_for(self, call: AttnCall) -> Any:
        """The handle of the chosen backend, which the first call chooses."""
        if self.chosen is None:
            self.choose([AttnCase(call, (0,))])
        assert self.chosen is not None
        return self.chosen.prepare_handle(call)

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: Any) -> Tensor:
        """Runs the attention of the chosen backend."""
        assert self.chosen is not None, "prepare comes first"
        return self.chosen(q_BMHK, k_BMGK, v_BMGK, handle)

    def kernel_for(self, call: AttnCall) -> str:
        """The kernel of the chosen backend."""
        if self.chosen is None:
            self.choose([AttnCase(call, (0,))])
        assert self.chosen is not None
        return self.chosen.kernel_name(call)

    def packs_at_full_speed(self, device: torch.device) -> bool:
        """Whether a candidate does; it is chosen only later, for the first batch."""
        return any(backend.packs_at_full_speed(device) for backend in _candidates())

    def choose(self, cases: Sequence[AttnCase]) -> None:
        """Times forward plus backward of each candidate, and chooses the fastest.

        One backend computes all layers. If layers differ, its time is the mean over all layers.
        Under `torch.use_deterministic_algorithms` nothing is timed, since timings differ from run
        to run: the first candidate that runs is chosen.

        Args:
            cases: the distinct attention calls of the model, with their layers.
        """
        runnable: list[Backend] = []
        slow: list[Backend] = []
        trials: dict[str, Trial] = {}
        for backend in _candidates():
            reasons = _reasons(backend, cases)
            if not reasons:
                slowness = (why for case in cases for why in backend.too_slow_to_time(case.call))
                if reasons := list(dict.fromkeys(slowness)):
                    slow.append(backend)
            if reasons:
                trials[backend.name] = Trial(backend.name, "", None, "; ".join(reasons))
            else:
                runnable.append(backend)
        runnable = runnable or slow[:1]  # a slow backend is better than none
        assert runnable, "preflight refuses a run that no backend can compute"
        if torch.are_deterministic_algorithms_enabled() or len(runnable) == 1:
            self.chosen = runnable[0]
            self.trials = list(trials.values())
            log.info("attention: auto takes %s, the first backend that runs", self.chosen.name)
            return
        num_layers = sum(len(case.layers) for case in cases)
        totals = [0.0] * len(runnable)
        for call, layers in cases:
            medians = times_ms(runnable, call)
            share = len(layers) / num_layers
            totals = [total + share * ms for total, ms in zip(totals, medians, strict=True)]
        for backend, ms in zip(runnable, totals, strict=True):
            kernel = kernel_name(backend, cases)
            trials[backend.name] = Trial(backend.name, kernel, ms)
        self.chosen = runnable[totals.index(min(totals))]
        self.trials = sorted(trials.values(), key=lambda trial: trial.ms or float("inf"))
        log.info("%s", self.table(cases))

    def stand_in(self, call: AttnCall) -> Attention | None:
        """See `Backend`; delegates to the chosen backend."""
        return self._backend_for_memory(call).stand_in(call)

    def transient_bytes(self, call: AttnCall) -> int | None:
        """See `Backend`; delegates to the chosen backend."""
        return self._backend_for_memory(call).transient_bytes(call)

    def _backend_for_memory(self, call: AttnCall) -> Backend:
        """The chosen backend; before the choice, the most preferred one that can run."""
        runs = (b for b in _candidates() if not b.unsupported_reasons(call))
        return self.chosen or next(runs)

    def choose_by_name(self, name: str) -> None:
        """Chooses a backend by name, the one that rank 0 has measured as the fastest."""
        (self.chosen,) = (backend for backend in all_backends() if backend.name == name)

    def reuse_choice(self, name: str, cases: Sequence[AttnCase]) -> list[str]:
        """Chooses the backend that the resumed run had chosen, without timing.

        Returns:
            Reasons why it cannot run here; empty if it was chosen.
        """
        backends = {backend.name: backend for backend in _candidates()}
        if name not in backends:
            return ["there is no such backend to choose from"]
        reasons = _reasons(backends[name], cases)
        if not reasons:
            self.chosen = backends[name]
        return reasons

    def table(self, cases: Sequence[AttnCase]) -> str:
        """The timing table as text."""
        _, shape, dtype, _ = cases[0].call
        groups = ",".join(str(G) for G in dict.fromkeys(case.call.shape.G for case in cases))
        sizes = f"B={shape.B} M={shape.M} H={shape.H} G={groups} K={shape.K}"
        name = str(dtype).removeprefix("torch.")
        what = "one layer" if len(cases) == 1 else f"the mean of {len(cases)} kinds of layers,"
        lines = [f"attention: auto, {what} forward + backward at {sizes} {name}"]
        for trial in self.trials:
            taken = self.chosen is not None and trial.name == self.chosen.name
            result = f"{trial.ms:9.3f} ms  {trial.kernel}" if trial.ms else f"  {trial.reason}"
            lines.append(f"  {'->' if taken else '  '} {trial.name:9}{result}")
        for backend in all_backends():
            if backend.needs_compilation:
                lines.append(f"     {backend.name:9}  not timed: it would have to be compiled")
        return "\n".join(lines)


def _candidates() -> list[Backend]:
    """The backends that can be timed without compiling them."""
    return [backend for backend in all_backends() if not backend.needs_compilation]


def _reasons(backend: Backend, cases: Sequence[AttnCase]) -> list[str]:
    """Reasons why a backend cannot compute all layers; empty if it can."""
    return [why for case in cases for why in backend.unsupported_reasons(case.call)]


def times_ms(
    backends: list[Backend],
    call: AttnCall,
    *,
    seed: int = 0,
    max_repeats: int = _MAX_REPEATS,
) -> list[float]:
    """Median milliseconds of forward plus backward of each backend.

    Repetitions of the backends are interleaved, so that drift affects all equally.

    Args:
        backends: backends that can run the call.
        call: the attention call to time.
        seed: seed of the random q, k and v.
        max_repeats: maximum number of repetitions.
    """
    _, shape, dtype, device = call
    B, M, H, G, K = shape.B, shape.M, shape.H, shape.G, shape.K
    generator = torch.Generator(device).manual_seed(seed)  # not the run's own random state

    def random_input(heads: int) -> Tensor:
        x = torch.randn(B, M, heads, K, generator=generator, device=device, dtype=torch.float32)
        return x.to(dtype).requires_grad_()

    q, k, v, grad = random_input(H), random_input(G), random_input(G), random_input(H).detach()
    handles = [backend.prepare_handle(call) for backend in backends]

    def run(index: int) -> None:
        torch.autograd.grad(backends[index](q, k, v, handles[index]), (q, k, v), grad)

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        times = interleaved_times_ms(
            [partial(wall_ms, partial(run, index), device) for index in range(len(backends))],
            budget_s=_BUDGET_S,
            min_repeats=_MIN_REPEATS,
            max_repeats=max_repeats,
        )
    return [statistics.median(series) for series in times]

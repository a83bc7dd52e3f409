"""An optimizer step as one CUDA graph: forward, loss, backward, clipping and AdamW at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.interfaces import Batch, LossSums
from xftrain.memory import is_out_of_memory
from xftrain.training.module import TrainingModule
from xftrain.training.nonfinite import takes_flag


class Outcome(NamedTuple):
    """What a step leaves behind; each replay writes it anew, in the same place.

    Attributes:
        sums: of the loss.
        grad_norm: before clipping.
    """

    sums: LossSums
    grad_norm: Tensor


@dataclass(frozen=True)
class _Recorded:
    replay: Callable[[], None]
    outcome: Outcome
    handle: Any  # of the attention, whose tensors the graph reads


class Recorder:
    """Records what functions launch, without doing it.

    The graphs share their memory, as only one runs at a time and each begins anew.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """What is done in it, on the stream of the recording.

        Where a graph of autograd lives on, its leaves belong to the stream that they were made on,
        and a recording may not wait for the default one.
        """
        self._stream = self._stream or torch.cuda.Stream()
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    def __call__(self, make: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        """Returns what does it, as often as it is called, and what the function returned.

        Args:
            make: launches on the current stream, and waits for nothing.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # other threads, as that of autograd, may ask the driver what a recording one may not
        how = {"stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self._pool, **how):  # type: ignore[arg-type]
            outcome = make()
        return graph.replay, outcome


class StepGraphs:
    """Makes optimizer steps by replaying graphs, one for steps with accuracy and one for others.

    The first step of a kind is to be made without, which compiles what it needs; the second one is
    recorded. What varies from step to step goes through memory that the graphs read: the batch, the
    rates of the optimizer, the seed of dropout. The optimizer's own state, and so a checkpoint, is
    what it would be without graphs.

    Args:
        module: what is trained, on one CUDA device, with one batch a step.
    """

    def __init__(self, module: TrainingModule) -> None:
        self.module, self._recorder = module, Recorder()
        self._made: set[bool] = set()  # kinds of which one was made without a graph
        self._recorded: dict[bool, _Recorded] = {}
        self._batch: Batch | None = None  # on the device, read by the graphs
        self._rates: list[Tensor] = []  # of each group of the optimizer, read by the graphs

    def check(self) -> None:
        """Refuses an optimizer that waits for the host.

        Raises:
            ConfigError: which it is.
        """
        optimizer = self._optimizer()
        if not takes_flag(optimizer) or "capturable" not in optimizer.defaults:
            raise ConfigError(
                f"compile=cudagraphs replays the optimizer's step, and {type(optimizer).__name__} "
                "is no fused optimizer of torch, which alone take a rate and a skip from the "
                "device: use optim=adamw, or compile=true."
            )

    def can_make(self, *, with_accuracy: bool) -> bool:
        """Whether what such a step needs is compiled."""
        return with_accuracy in self._made

    @contextmanager
    def without(self, *, with_accuracy: bool) -> Iterator[None]:
        """Such a step is made in it, without a graph."""
        before = self.module.trainer.global_step
        with self._recorder.warming_up():
            yield
        if self.module.trainer.global_step > before:
            self._made.add(with_accuracy)

    def make(self, batch: Batch, *, with_accuracy: bool) -> Outcome:
        """Makes one optimizer step; does not wait for it.

        Args:
            batch: on the host, shaped as the first one.
            with_accuracy: count correct guesses too.

        Raises:
            RunError: a batch of another shape.
        """
        self._take(batch)
        recorded = self._recorded.get(with_accuracy)
        if recorded is None:
            recorded = self._recorded[with_accuracy] = self._record(with_accuracy)
        for rate, group in zip(self._rates, self._optimizer().param_groups, strict=True):
            rate.fill_(group["lr"])
        recorded.replay()
        return recorded.outcome

    def _take(self, batch: Batch) -> None:
        """Puts the batch where the graphs read it."""
        if self._batch is None:
            self._batch = batch.to(self.module.device, copy=True)
            return
        if batch.shape_BM != self._batch.shape_BM or batch.seqlens is not None:
            raise RunError(
                f"compile=cudagraphs replays batches of one shape, {self._batch.shape_BM}, and a "
                f"later one is of {batch.shape_BM}{', packed' if batch.seqlens else ''}: use "
                "compile=true."
            )
        batch = batch.pinned() if self.module.device.type == "cuda" else batch
        self._batch.tokens_BM.copy_(batch.tokens_BM, non_blocking=True)
        self._batch.labels_BM.copy_(batch.labels_BM, non_blocking=True)
        self._batch.positions_1M.copy_(batch.positions_1M, non_blocking=True)

    def _record(self, with_accuracy: bool) -> _Recorded:
        module, batch = self.module, self._batch
        assert batch is not None
        with module.trainer.precision_plugin.forward_context():
            handle = module.model.prepare(*batch.shape_BM)  # it may come from the host
        if not self._rates:
            groups = self._optimizer().param_groups
            self._rates = [torch.zeros((), device=module.device) for _ in groups]
        try:
            with self._rates_on_device():
                replay, outcome = self._recorder(lambda: self._launch(with_accuracy))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"compile=cudagraphs cannot record this step ({first_line(error)}): some part of "
                "it waits for the device; use compile=true."
            ) from error
        return _Recorded(replay, outcome, handle)

    def _launch(self, with_accuracy: bool) -> Outcome:
        """What Lightning does in a step, on the batch that the graphs read."""
        module, optimizer, batch = self.module, self._optimizer(), self._batch
        assert batch is not None
        optimizer.zero_grad(set_to_none=True)
        with module.trainer.precision_plugin.forward_context():
            sums = module.forward_loss(batch, with_accuracy=with_accuracy)
            loss = sums.loss / sums.num_labels
        scaler = module.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        sums = LossSums(sums.loss.detach(), sums.num_labels, sums.num_correct)
        grad_norm = module.clip(optimizer, sums.loss)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return Outcome(sums, grad_norm)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The optimizer reads its rates from memory while it is recorded, and only then."""
        groups = self._optimizer().param_groups
        before = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.module.trainer.optimizers[0]

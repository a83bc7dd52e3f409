"""An optimizer step as one CUDA graph: forward, loss, backward, clipping and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.interfaces import Batch, LossSums
from xftrain.train.module import TrainingModule
from xftrain.train.nonfinite import skips_if_found_inf
from xftrain.train.step_sums import mean_labels
from xftrain.utils.device_memory import is_out_of_memory

_EAGER_STEPS = 2  # steps before the capture, which compile and create the optimizer's state


class StepOutcome(NamedTuple):
    """The results of a step, which each replay overwrites in the same memory.

    Attributes:
        loss: mean loss over the labels.
        sums: loss sums.
        grad_norm: norm of the gradients before clipping.
    """

    loss: Tensor
    sums: LossSums
    grad_norm: Tensor


_HostValues = dict[tuple[str, int | None], Any]


class _CapturedStep(NamedTuple):
    replay: Callable[[], None]
    outcome: StepOutcome
    handle: Any  # the attention's handles, kept since the graph reads their tensors
    values: _HostValues  # values on the host at the capture


class GraphCapture:
    """Captures the kernels that a function launches in a CUDA graph, without running them."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Within this context, work runs on the stream of the capture.

        The leaves of an autograd graph belong to the stream on which they were created, and a
        capture may not wait for the default stream.
        """
        self._stream = self._stream or torch.cuda.Stream()
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    def __call__(self, launch: Callable[[], StepOutcome]) -> tuple[Callable[[], None], StepOutcome]:
        """Captures a function; returns the replay function and the outcome.

        Args:
            launch: launches kernels on the current stream, without synchronizing.
        """
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        outcome: StepOutcome | RuntimeError | None = None
        # other threads, such as that of autograd, may make calls that a capturing thread may not
        options: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **options):
                try:
                    outcome = launch()
                except RuntimeError as error:  # the end of the capture raises another one
                    outcome = error
        except RuntimeError as error:
            outcome = outcome if isinstance(outcome, RuntimeError) else error
        finally:
            torch.cuda.set_stream(outer)
        if not isinstance(outcome, StepOutcome):
            # the old state stays in capture mode, and could not be sampled from
            generator.graphsafe_set_state(state)
            assert outcome is not None
            raise outcome
        return graph.replay, outcome


class StepGraphs:
    """Runs optimizer steps by replaying a CUDA graph.

    The first steps run without the graph, and compile what they need. Values that change between
    steps are in memory that the graph reads: the batch, the learning rates, the seed of dropout.
    All other values stay as they were at the capture. The state of the optimizer, and so a
    checkpoint, is the same as without graphs.

    Args:
        module: the module to train, on one CUDA device, with one batch per step.
    """

    def __init__(self, module: TrainingModule) -> None:
        self.module, self._graph_capture = module, GraphCapture()
        module.always_computes_accuracy = (
            True  # compute accuracy in each step, as there is only one graph
        )
        self._num_eager = 0
        self._captured: _CapturedStep | None = None
        self._batch: Batch | None = None  # on the device, read by the graph
        self._learning_rates: list[Tensor] = []  # learning rate of each group, read by the graph

    def check(self) -> None:
        """Refuses an optimizer whose step cannot be captured.

        Raises:
            ConfigError: the optimizer cannot be captured; the message names it.
        """
        optimizer = self._optimizer()
        if not skips_if_found_inf(optimizer) or "capturable" not in optimizer.defaults:
            raise ConfigError(
                f"compile=cudagraphs replays the optimizer's step, and {type(optimizer).__name__} "
                "cannot read the learning rate and the skip flag from the device: use "
                "optim=adamw, or compile=true."
            )

    @property
    def can_capture(self) -> bool:
        """Whether all eager steps before the capture have run."""
        return self._num_eager >= _EAGER_STEPS

    @contextmanager
    def eager_step(self) -> Iterator[None]:
        """Within this context, one step runs without the graph."""
        step, groups = self.module.trainer.global_step, self._optimizer().param_groups
        before_step = [group["lr"] for group in groups]
        # float32, as the graph reads them
        rounded = [float(torch.tensor(learning_rate)) for learning_rate in before_step]
        for group, learning_rate in zip(groups, rounded, strict=True):
            group["lr"] = learning_rate
        try:
            with self._graph_capture.warming_up():
                yield
        finally:
            for group, before, learning_rate in zip(groups, before_step, rounded, strict=True):
                if group["lr"] == learning_rate:  # the schedule has not changed it
                    group["lr"] = before
        self._num_eager += self.module.trainer.global_step - step

    def load_batch(self, batch: Batch) -> Batch:
        """Copies a batch to the memory that the graph reads, and returns that batch.

        Raises:
            RunError: its shape differs from that of the first batch.
        """
        if self._batch is None:
            self._batch = batch.to(self.module.device, copy=True)
            return self._batch
        if batch.shape_BM != self._batch.shape_BM or batch.seqlens is not None:
            raise RunError(
                f"compile=cudagraphs replays batches of one shape, {self._batch.shape_BM}, and a "
                f"later one is of {batch.shape_BM}{', packed' if batch.seqlens else ''}: use "
                "compile=true."
            )
        batch = batch.pinned() if self.module.device.type == "cuda" else batch
        self._batch.copy_(batch)
        return self._batch

    def replay(self) -> StepOutcome:
        """Runs an optimizer step on the last loaded batch, without waiting for it.

        Raises:
            RunError: the step cannot be captured, or must differ from the captured one.
        """
        if self._captured is None:
            self._captured = self._capture()
        captured, values = self._captured, self._host_values()
        if values != captured.values:
            key = next(key for key in values if values[key] != captured.values.get(key))
            name, group_index = key
            where = "" if group_index is None else f" of the optimizer's group {group_index}"
            raise RunError(
                f"compile=cudagraphs replays a step that was captured with {name}{where} = "
                f"{captured.values.get(key)}, which is now {values[key]}: use compile=true."
            )
        groups = self._optimizer().param_groups
        for learning_rate, group in zip(self._learning_rates, groups, strict=True):
            learning_rate.fill_(group["lr"])
        captured.replay()
        return captured.outcome

    def _capture(self) -> _CapturedStep:
        module, batch, groups = self.module, self._batch, self._optimizer().param_groups
        assert batch is not None
        with module.trainer.precision_plugin.forward_context():
            handle = module.model.prepare(*batch.shape_BM)  # it may be copied from the host
        self._learning_rates = [torch.zeros((), device=module.device) for _ in groups]
        values = self._host_values()
        try:
            with self._learning_rates_on_device():
                replay, outcome = self._graph_capture(self._launch)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"compile=cudagraphs cannot capture this step ({first_line(error)}): use "
                "compile=true."
            ) from error
        return _CapturedStep(replay, outcome, handle, values)

    def _launch(self) -> StepOutcome:
        """Runs the parts of a Lightning step on the batch that the graph reads."""
        module, optimizer, batch = self.module, self._optimizer(), self._batch
        assert batch is not None
        optimizer.zero_grad(set_to_none=True)
        with module.trainer.precision_plugin.forward_context():
            sums = module.forward_loss(batch, with_accuracy=True)
            loss = sums.minimized / mean_labels(sums.num_labels)
        scaler = module.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        sums = sums.detached()
        grad_norm = module.clip(optimizer, sums)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return StepOutcome(loss.detach(), sums, grad_norm)

    def _host_values(self) -> _HostValues:
        """Values set on the host, which a replay would not see, by name and parameter group."""
        values: _HostValues = {
            (name, index): value
            for index, group in enumerate(self._optimizer().param_groups)
            for name, value in group.items()
            if name not in ("params", "lr", "initial_lr")
        }
        values["trainer.gradient_clip_val", None] = self.module.trainer.gradient_clip_val
        return values

    @contextmanager
    def _learning_rates_on_device(self) -> Iterator[None]:
        """Within this context, the optimizer reads learning rates from device memory."""
        groups = self._optimizer().param_groups
        before = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        for group, learning_rate in zip(groups, self._learning_rates, strict=True):
            group.update(lr=learning_rate, capturable=True)
        try:
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.module.trainer.optimizers[0]

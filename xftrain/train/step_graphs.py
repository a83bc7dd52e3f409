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
from xftrain.train.nonfinite import takes_flag
from xftrain.train.step_sums import mean_labels
from xftrain.utils.device_memory import is_out_of_memory

_PLAIN_STEPS = 2  # before the capture, to compile and to create the optimizer's state


class Outcome(NamedTuple):
    """The results of a step, which each replay overwrites in the same memory.

    Attributes:
        loss: mean loss over the labels.
        sums: loss sums.
        grad_norm: norm of the gradients before clipping.
    """

    loss: Tensor
    sums: LossSums
    grad_norm: Tensor


_Values = dict[tuple[str, int | None], Any]


class _Recorded(NamedTuple):
    replay: Callable[[], None]
    outcome: Outcome
    handle: Any  # handles of the attention, whose tensors the graph reads
    values: _Values  # values on the host at the capture


class Recorder:
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

    def __call__(self, make: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        """Captures a function; returns the replay function and the outcome.

        Args:
            make: launches kernels on the current stream, without synchronizing.
        """
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        made: Outcome | RuntimeError | None = None
        # other threads, such as that of autograd, may make calls that a capturing thread may not
        how: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **how):
                try:
                    made = make()
                except RuntimeError as error:  # the end of the capture raises another one
                    made = error
        except RuntimeError as error:
            made = made if isinstance(made, RuntimeError) else error
        finally:
            torch.cuda.set_stream(outer)
        if not isinstance(made, Outcome):
            # the old state stays in capture mode, and could not be sampled from
            generator.graphsafe_set_state(state)
            assert made is not None
            raise made
        return graph.replay, made


class StepGraphs:
    """Runs optimizer steps by replaying a CUDA graph.

    The first steps run without the graph, and compile what they need. Values that change between
    steps are in memory that the graph reads: the batch, the learning rates, the seed of dropout.
    All others keep their values from the capture. The state of the optimizer, and so a checkpoint,
    is the same as without graphs.

    Args:
        module: the module to train, on one CUDA device, with one batch per step.
    """

    def __init__(self, module: TrainingModule) -> None:
        self.module, self._recorder = module, Recorder()
        module.always_counts = True  # compute accuracy in each step, as there is only one graph
        self._num_plain = 0
        self._recorded: _Recorded | None = None
        self._batch: Batch | None = None  # on the device, read by the graph
        self._rates: list[Tensor] = []  # learning rate of each group, read by the graph

    def check(self) -> None:
        """Refuses an optimizer whose step cannot be captured.

        Raises:
            ConfigError: the optimizer cannot be captured; the message names it.
        """
        optimizer = self._optimizer()
        if not takes_flag(optimizer) or "capturable" not in optimizer.defaults:
            raise ConfigError(
                f"compile=cudagraphs replays the optimizer's step, and {type(optimizer).__name__} "
                "cannot read the learning rate and the skip flag from the device: use "
                "optim=adamw, or compile=true."
            )

    @property
    def can_capture(self) -> bool:
        """Whether the eager steps before the capture are done."""
        return self._num_plain >= _PLAIN_STEPS

    @contextmanager
    def eager_step(self) -> Iterator[None]:
        """Within this context, one step runs without the graph."""
        step, groups = self.module.trainer.global_step, self._optimizer().param_groups
        rates = [group["lr"] for group in groups]
        narrow = [float(torch.tensor(rate)) for rate in rates]  # float32, as the graph reads them
        for group, rate in zip(groups, narrow, strict=True):
            group["lr"] = rate
        try:
            with self._recorder.warming_up():
                yield
        finally:
            for group, before, rate in zip(groups, rates, narrow, strict=True):
                if group["lr"] == rate:  # the schedule has not changed it
                    group["lr"] = before
        self._num_plain += self.module.trainer.global_step - step

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

    def replay(self) -> Outcome:
        """Runs an optimizer step on the last loaded batch, without waiting for it.

        Raises:
            RunError: the step cannot be captured, or must differ from the captured one.
        """
        if self._recorded is None:
            self._recorded = self._record()
        recorded, values = self._recorded, self._values()
        if values != recorded.values:
            key = next(key for key in values if values[key] != recorded.values.get(key))
            name, group_index = key
            of = "" if group_index is None else f" of the optimizer's group {group_index}"
            raise RunError(
                f"compile=cudagraphs replays a step as it was recorded, with {name}{of} = "
                f"{recorded.values.get(key)}, which is {values[key]} by now: use compile=true."
            )
        for rate, group in zip(self._rates, self._optimizer().param_groups, strict=True):
            rate.fill_(group["lr"])
        recorded.replay()
        return recorded.outcome

    def _record(self) -> _Recorded:
        module, batch, groups = self.module, self._batch, self._optimizer().param_groups
        assert batch is not None
        with module.trainer.precision_plugin.forward_context():
            handle = module.model.prepare(*batch.shape_BM)  # it may be copied from the host
        self._rates = [torch.zeros((), device=module.device) for _ in groups]
        values = self._values()
        try:
            with self._rates_on_device():
                replay, outcome = self._recorder(self._launch)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise RunError(
                f"compile=cudagraphs cannot record this step ({first_line(error)}): use "
                "compile=true."
            ) from error
        return _Recorded(replay, outcome, handle, values)

    def _launch(self) -> Outcome:
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
        return Outcome(loss.detach(), sums, grad_norm)

    def _values(self) -> _Values:
        """Values set on the host, which a replay would not see, by name and parameter group."""
        found: _Values = {
            (name, index): value
            for index, group in enumerate(self._optimizer().param_groups)
            for name, value in group.items()
            if name not in ("params", "lr", "initial_lr")
        }
        found["trainer.gradient_clip_val", None] = self.module.trainer.gradient_clip_val
        return found

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Within this context, the optimizer reads learning rates from device memory."""
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

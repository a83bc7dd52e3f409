"""An optimizer step as one CUDA graph: forward, loss, backward, clipping and AdamW at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.interfaces import Batch, LossSums
from xftrain.memory import is_out_of_memory
from xftrain.training.module import TrainingModule
from xftrain.training.nonfinite import takes_flag
from xftrain.training.step_sums import mean_labels

_PLAIN_STEPS = 2  # before the recording: they compile, and make the optimizer's state


class Outcome(NamedTuple):
    """What a step leaves behind; each replay writes it anew, in the same place.

    Attributes:
        loss: mean over the labels.
        sums: of the loss.
        grad_norm: before clipping.
    """

    loss: Tensor
    sums: LossSums
    grad_norm: Tensor


_Values = dict[tuple[str, int | None], Any]


class _Recorded(NamedTuple):
    replay: Callable[[], None]
    outcome: Outcome
    handle: Any  # of the attention, whose tensors the graph reads
    values: _Values  # of the host, that it was recorded with


class Recorder:
    """Records what a function launches, without doing it."""

    def __init__(self) -> None:
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
        graph, outer = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        made: Outcome | RuntimeError | None = None
        # other threads, as that of autograd, may ask the driver what a recording one may not
        how: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **how):
                try:
                    made = make()
                except RuntimeError as error:  # the end raises another in its place
                    made = error
        except RuntimeError as error:
            made = made if isinstance(made, RuntimeError) else error
        finally:
            torch.cuda.set_stream(outer)
        if not isinstance(made, Outcome):
            # the old state is that of a recording for ever, and would refuse to be drawn from
            generator.graphsafe_set_state(state)
            assert made is not None
            raise made
        return graph.replay, made


class StepGraphs:
    """Makes optimizer steps by replaying a graph.

    The first steps are to be made without, and compile what they need. What varies from step to
    step goes through memory that the graph reads: the batch, the rates of the optimizer, the seed
    of dropout. All else is as it was when the graph was recorded. The optimizer's own state, and
    so a checkpoint, is what it would be without graphs.

    Args:
        module: what is trained, on one CUDA device, with one batch a step.
    """

    def __init__(self, module: TrainingModule) -> None:
        self.module, self._recorder = module, Recorder()
        module.always_counts = True  # accuracy in each step, or there would be two graphs
        self._num_plain = 0
        self._recorded: _Recorded | None = None
        self._batch: Batch | None = None  # on the device, read by the graph
        self._rates: list[Tensor] = []  # of each group of the optimizer, read by the graph

    def check(self) -> None:
        """Refuses an optimizer whose step cannot be recorded.

        Raises:
            ConfigError: which it is.
        """
        optimizer = self._optimizer()
        if not takes_flag(optimizer) or "capturable" not in optimizer.defaults:
            raise ConfigError(
                f"compile=cudagraphs replays the optimizer's step, and {type(optimizer).__name__} "
                "cannot take its rate, and whether to skip, from the device: use optim=adamw, or "
                "compile=true."
            )

    @property
    def can_make(self) -> bool:
        """Whether what a step needs is there."""
        return self._num_plain >= _PLAIN_STEPS

    @contextmanager
    def eager_step(self) -> Iterator[None]:
        """A step is made in it, without the graph."""
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
                if group["lr"] == rate:  # the schedule has not moved it
                    group["lr"] = before
        self._num_plain += self.module.trainer.global_step - step

    def load_batch(self, batch: Batch) -> Batch:
        """Puts a batch where the graph reads it, and returns that.

        Raises:
            RunError: it is shaped otherwise than the first one.
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
        """Makes an optimizer step of the batch that was loaded last; does not wait for it.

        Raises:
            RunError: the step cannot be recorded, or is to be another than the recorded one.
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
            handle = module.model.prepare(*batch.shape_BM)  # it may come from the host
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
        """What Lightning does in a step, on the batch that the graph reads."""
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
        """What the host sets and a replay would not see, by name and the optimizer's group."""
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

"""Steps that are replayed as graphs make the run that is made without; on a CPU by a stand-in."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback

from tests.training.runs import last, rows_of, run, same_weights, small, weights_of
from xftrain import preflight, runner
from xftrain.config import validate
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import LossSums
from xftrain.model import GPT
from xftrain.training import step_graphs
from xftrain.training.checkpoint import read_checkpoint
from xftrain.training.graphed_loop import _has
from xftrain.training.optim.adamw import AdamW
from xftrain.training.step_graphs import Outcome


class Again:
    """Replays by doing it again, as a graph does it.

    That is with the values that the optimizer had when it was recorded, and with an outcome that
    stays in one place and is good until the next replay.
    """

    made = 0
    has_aux = False  # whether the feed-forwards have an auxiliary loss
    warming_up = nullcontext

    def __call__(self, make: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        groups = make.__self__._optimizer().param_groups
        recorded = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        assert all(isinstance(values["lr"], torch.Tensor) for values in recorded)
        zeros = torch.zeros(6).unbind()
        aux = zeros[5] if self.has_aux else None
        sums = LossSums(zeros[1], zeros[2].long(), zeros[3].long(), aux)
        held = Outcome(zeros[0], sums, zeros[4])
        places = [held.loss, *(one for one in sums if one is not None), held.grad_norm]

        def replay() -> None:
            type(self).made += 1
            now = [dict(group) for group in groups]
            for group, values in zip(groups, recorded, strict=True):
                group.update(values)
            loss, sums, grad_norm = make()
            for group, values in zip(groups, now, strict=True):
                group.update(values)
            values = (loss, *(one for one in sums if one is not None), grad_norm)
            for place, value in zip(places, values, strict=True):
                place.copy_(value)

        return replay, held


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(step_graphs, "Recorder", Again)
    monkeypatch.setattr(preflight, "_check_graphs", lambda *args: None)
    monkeypatch.setattr(GPT, "compile_blocks", lambda self, packed: None)
    monkeypatch.setattr(Again, "made", 0)


REAL = step_graphs.Recorder
WARMUP = "schedule.warmup_steps=3"
RUN = ("max_steps=12", "trainer.val_check_interval=5", "model.dropout=0.1", WARMUP)
FIGURES = ("train/loss", "train/accuracy", "train/grad_norm", "optim/lr", "val/loss")


def test_a_graphed_run_is_the_run_without(tmp_path, on_cpu):
    plain, graphed = tmp_path / "plain", tmp_path / "graphed"
    run(plain, *RUN)
    run(graphed, *RUN, "compile=cudagraphs")
    assert Again.made == 10  # all but the first two
    # a graph reads its rate in float32
    weights = [weights_of(last(where)) for where in (plain, graphed)]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    for name in FIGURES:
        found, expected = rows_of(graphed, name), rows_of(plain, name)
        assert found == pytest.approx(expected, rel=1e-5), name
    one, two = read_checkpoint(last(plain)), read_checkpoint(last(graphed))
    for part in ("loops", "lr_schedulers", "global_step"):
        assert two[part] == one[part], part
    groups = [held["optimizer_states"][0]["param_groups"] for held in (one, two)]
    assert groups[0] == groups[1]


def test_a_graphed_run_goes_on_where_it_was(tmp_path, on_cpu):
    words = (*RUN, "compile=cudagraphs", "schedule=constant", "optim.lr=0.0123")
    run(tmp_path / "whole", *words)
    run(tmp_path / "cut", *words, "max_steps=7")
    run(tmp_path / "cut", *words, "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


def test_a_step_that_is_not_finite_is_left_out(tmp_path, on_cpu, monkeypatch):
    forward_loss = runner.TrainingModule.forward_loss

    def spoiled(self, batch, *, with_accuracy):
        sums = forward_loss(self, batch, with_accuracy=with_accuracy)
        at_7 = self.training and self.trainer.global_step + 1 == 7
        return sums._replace(loss=sums.loss * float("nan")) if at_7 else sums

    monkeypatch.setattr(runner.TrainingModule, "forward_loss", spoiled)
    with pytest.raises(RunError, match="gradient of step 7 is not finite"):
        run(tmp_path / "stopped", *RUN, "compile=cudagraphs")
    result = run(tmp_path / "skipped", *RUN, "compile=cudagraphs", "on_nonfinite=skip")
    assert result["metrics"]["train/skipped_steps"] == 1


def test_a_profile_sees_replays(tmp_path, on_cpu):
    run(tmp_path, *RUN, "compile=cudagraphs", "trainer.profiler=pytorch")
    (trace,) = tmp_path.glob("*.trace.json")
    steps = set(re.findall(r"ProfilerStep#(\d+)", trace.read_text()))
    assert steps == {"2", "3", "4"}  # from 0: the first two are made without a graph


def test_a_step_that_cannot_be_recorded_is_told(tmp_path, on_cpu, monkeypatch):
    def fails(self, make):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Again, "__call__", fails)
    with pytest.raises(
        RunError, match=r"cannot record this step \(RuntimeError: CUDA .* capturing\)"
    ):
        run(tmp_path, *RUN, "compile=cudagraphs")


class Recording:
    """CUDA's, as it ends where something in it failed: with an error that hides the first."""

    def __init__(self, graph, **how):
        assert how["stream"] == "side"

    def __enter__(self):
        pass

    def __exit__(self, kind, *_):
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("first", ["a copy that waits", None])
def test_the_error_that_is_told_is_the_first(monkeypatch, first):
    streams = []
    for name, value in (
        ("CUDAGraph", object),
        ("graph", Recording),
        ("set_stream", streams.append),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "outer")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", [mock.MagicMock()])

    def make():
        if first:
            raise RuntimeError(first)

    recorder = REAL()
    recorder._stream = "side"
    with pytest.raises(RuntimeError, match=first or "previous error during capture"):
        recorder(make)
    assert streams == ["outer"], "what comes next is not on the stream of the recording"


class Meddles(Callback):
    def on_after_backward(self, trainer, pl_module):
        pass


def test_hooks_within_a_step_are_refused(tmp_path, on_cpu):
    mine = "+callbacks.mine={_target_: tests.training.test_graphed.Meddles}"
    with pytest.raises(ConfigError, match="Meddles.on_after_backward would not be called"):
        run(tmp_path, *RUN, "compile=cudagraphs", mine)


def test_an_optimizer_that_waits_is_refused(tmp_path, on_cpu):
    with pytest.raises(ConfigError, match="optim=adafactor cannot run .* learning rate"):
        run(tmp_path, *RUN, "compile=cudagraphs", "optim=adafactor")


def test_one_that_takes_a_flag_but_no_rate_is_refused(tmp_path, on_cpu, monkeypatch):
    def make(self, groups):
        return torch.optim.SGD(groups, lr=0.1, fused=True)

    monkeypatch.setattr(AdamW, "make", make)
    with pytest.raises(ConfigError, match="SGD cannot take its rate"):
        run(tmp_path, *RUN, "compile=cudagraphs")


@pytest.mark.parametrize("key", ["accumulate_grad_batches", "devices"])
def test_what_makes_a_step_of_several_batches_is_refused(key):
    # a replay writes each batch's gradients to the same place: the last one's alone would count
    with pytest.raises(ConfigError, match=rf"trainer\.{key} must be 1 with compile=cudagraphs"):
        validate(small("compile=cudagraphs", f"trainer.{key}=2"))


class Callbacks:
    """Whose hooks change or ask for something."""

    class Momentum(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 6:
                trainer.optimizers[0].param_groups[1]["betas"] = (0.5, 0.9)

    class Accumulates(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.accumulate_grad_batches = 2 if trainer.global_step == 6 else 1

    class Logs(Callback):
        losses: ClassVar[list[float]] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert batch.tokens_BM.device == pl_module.device
            self.losses.append(float(outputs["loss"]))
            pl_module.log("mine", outputs["loss"], batch_size=1)


def with_callback(name):
    return f"+callbacks.mine={{_target_: tests.training.test_graphed.Callbacks.{name}}}"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("Momentum", RunError, r"betas of the optimizer's group 1 = \(0.9, 0.95\), which is \(0.5"),
        ("Accumulates", ConfigError, "a callback has set accumulate_grad_batches to 2"),
    ],
)
def test_what_a_replay_would_not_see_is_refused(tmp_path, on_cpu, name, error, said):
    with pytest.raises(error, match=said):
        run(tmp_path, *RUN, "compile=cudagraphs", with_callback(name))


def test_hooks_get_what_they_get_without_graphs(tmp_path, on_cpu):
    losses = Callbacks.Logs.losses
    run(tmp_path / "plain", *RUN, with_callback("Logs"))
    plain = losses.copy()
    losses.clear()
    run(tmp_path / "graphed", *RUN, with_callback("Logs"), "compile=cudagraphs")
    assert losses == pytest.approx(plain, rel=1e-5) and len(plain) == 12


def test_hooks_of_an_instance_count():
    at_end = LambdaCallback(on_train_batch_end=lambda *args: None)
    within = LambdaCallback(on_after_backward=lambda *args: None)
    assert _has(at_end, "on_train_batch_end") and not _has(at_end, "on_after_backward")
    assert _has(within, "on_after_backward")


def test_a_batch_of_another_shape_is_refused(tmp_path, on_cpu, monkeypatch):
    from xftrain.data.counting import Counting

    batch = Counting.batch

    def shorter(self, split, step, rank=0):
        made = batch(self, split, step, rank)
        if split == "train" and step == 5:
            made.tokens_BM, made.labels_BM = made.tokens_BM[1:], made.labels_BM[1:]
        return made

    monkeypatch.setattr(Counting, "batch", shorter)
    with pytest.raises(RunError, match=r"one shape, \(8, 16\), and a later one is of \(7, 16\)"):
        run(tmp_path, *RUN, "compile=cudagraphs")


GPU = ("trainer=gpu", "model.attn=sdpa", "model.num_layers=2", "compile=cudagraphs")
CHECKPOINTING = "model.activation_checkpointing"


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize("loss", ["auto", "full"])
def test_a_graphed_run_learns_the_same_on_a_gpu(tmp_path, monkeypatch, precision, loss):
    recorded, record = [], step_graphs.Recorder.__call__

    def counted(self, make):
        recorded.append(make)
        return record(self, make)

    monkeypatch.setattr(step_graphs.Recorder, "__call__", counted)
    words = (f"trainer.precision={precision}", f"loss={loss}", "max_steps=30", "optim.lr=0.01")
    often = ("trainer.val_check_interval=7", "trainer.log_every_n_steps=3")
    compiled = run(tmp_path / "compiled", *GPU, *words, *often, "compile=true")["metrics"]
    assert not recorded
    graphed = run(tmp_path / "graphed", *GPU, *words, *often)["metrics"]
    assert len(recorded) == 1
    assert graphed["train/loss"] == pytest.approx(compiled["train/loss"], rel=0.02)
    assert graphed["val/loss"] == pytest.approx(compiled["val/loss"], rel=0.02)
    assert graphed["optim/lr"] == compiled["optim/lr"]
    assert compiled["val/loss"] < 3.5  # of log 64 = 4.16 at the start


class Steady(Callback):
    """The peak but for the first steps, which try kernels out, on copies of tensors.

    Where a step is recorded, it is the next one, and the later ones allocate nothing.
    """

    modifies_weights = False
    mib = 0.0

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == step_graphs._PLAIN_STEPS:
            torch.cuda.reset_peak_memory_stats()
        Steady.mib = torch.cuda.max_memory_allocated() / 2**20


@pytest.mark.cuda
@pytest.mark.parametrize("compile", ["true", "cudagraphs"])
def test_compiled_feed_forwards_are_recomputed(tmp_path, compile):
    large = ("trainer.precision=bf16-mixed", "batch_tokens=65536", "seq=64", "max_steps=8")
    steady = "+callbacks.steady={_target_: tests.training.test_graphed.Steady}"
    losses, peaks = [], []
    for word in ("false", "ffn"):
        words = (f"compile={compile}", f"{CHECKPOINTING}={word}", "trainer.val_check_interval=100")
        result = run(tmp_path / word, *GPU, *large, *words, steady)
        losses.append(result["metrics"]["train/loss"])
        peaks.append(Steady.mib)
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert peaks[1] < 0.85 * peaks[0]


class Spoils(Callback):
    """A weight that is NaN after step 5."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 5:
            with torch.no_grad():
                pl_module.model.blocks[1].out.weight[0, 0] = float("nan")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_replayed_step_is_judged(tmp_path, precision):
    spoils = "+callbacks.spoils={_target_: tests.training.test_graphed.Spoils}"
    words = (f"trainer.precision={precision}", "max_steps=12", spoils)
    with pytest.raises(RunError, match=r"step 6 .*weights that are not finite: blocks\.1\.out"):
        run(tmp_path, *GPU, *words)


@pytest.mark.cuda
def test_a_recording_that_failed_leaves_random_numbers_to_be_drawn():
    # the generator stayed that of a recording, and dropout failed in later runs of the process
    def waits() -> Outcome:
        torch.rand(3, device="cuda")
        raise AssertionError(torch.ones(3, device="cuda").sum().item())

    recorder = step_graphs.Recorder()
    with recorder.warming_up():
        torch.rand(3, device="cuda")
    torch.manual_seed(5)
    want = torch.rand(3, device="cuda")
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="capturing"):
        recorder(waits)
    assert torch.equal(torch.rand(3, device="cuda"), want)

"""Steps that are replayed as graphs make the run that is made without; on a CPU by a stand-in."""

from __future__ import annotations

import re
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback

from tests.train.graph_stand_in import Again
from tests.train.runs import last, rows_of, run, same_weights, weights_of
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import train
from xftrain.errors import RunError
from xftrain.train import step_graphs
from xftrain.train.step_graphs import StepOutcome

REAL = step_graphs.GraphCapture
WARMUP = "schedule.warmup_steps=3"
RUN = ("max_steps=12", "trainer.val_check_interval=5", "model.dropout=0.1", WARMUP)
FIGURES = ("train/loss", "train/accuracy", "train/grad_norm", "optim/lr", "val/loss")


def test_a_graphed_run_is_the_run_without(tmp_path, graphs_on_cpu):
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


def test_a_graphed_run_goes_on_where_it_was(tmp_path, graphs_on_cpu):
    words = (*RUN, "compile=cudagraphs", "schedule=constant", "optim.lr=0.0123")
    run(tmp_path / "whole", *words)
    run(tmp_path / "cut", *words, "max_steps=7")
    run(tmp_path / "cut", *words, "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))


def test_a_step_that_is_not_finite_is_left_out(tmp_path, graphs_on_cpu, monkeypatch):
    forward_loss = train.TrainingModule.forward_loss

    def spoiled(self, batch, *, with_accuracy):
        sums = forward_loss(self, batch, with_accuracy=with_accuracy)
        at_7 = self.training and self.trainer.global_step + 1 == 7
        return sums._replace(loss=sums.loss * float("nan")) if at_7 else sums

    monkeypatch.setattr(train.TrainingModule, "forward_loss", spoiled)
    with pytest.raises(RunError, match="gradient of step 7 is not finite"):
        run(tmp_path / "stopped", *RUN, "compile=cudagraphs")
    result = run(tmp_path / "skipped", *RUN, "compile=cudagraphs", "on_nonfinite=skip")
    assert result["metrics"]["train/skipped_steps"] == 1


def test_a_profile_sees_replays(tmp_path, graphs_on_cpu):
    run(tmp_path, *RUN, "compile=cudagraphs", "trainer.profiler=pytorch")
    (trace,) = tmp_path.glob("*.trace.json")
    steps = set(re.findall(r"ProfilerStep#(\d+)", trace.read_text()))
    assert steps == {"2", "3", "4"}  # from 0: the first two are made without a graph


def test_a_step_that_cannot_be_recorded_is_told(tmp_path, graphs_on_cpu, monkeypatch):
    def fails(self, make):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Again, "__call__", fails)
    with pytest.raises(
        RunError, match=r"cannot capture this step \(RuntimeError: CUDA .* capturing\)"
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


GPU = ("trainer=gpu", "model.attn=sdpa", "model.num_layers=2", "compile=cudagraphs")
CHECKPOINTING = "model.activation_checkpointing"


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize(
    ("loss", "optim"), [("auto", "adamw"), ("full", "adamw"), ("auto", "muon")]
)
def test_a_graphed_run_learns_the_same_on_a_gpu(tmp_path, monkeypatch, precision, loss, optim):
    recorded, record = [], step_graphs.GraphCapture.__call__

    def counted(self, make):
        recorded.append(make)
        return record(self, make)

    monkeypatch.setattr(step_graphs.GraphCapture, "__call__", counted)
    words = (f"trainer.precision={precision}", f"loss={loss}", "max_steps=30", f"optim={optim}")
    words += ("optim.lr=0.01",)
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
        if trainer.global_step == step_graphs._EAGER_STEPS:
            torch.cuda.reset_peak_memory_stats()
        Steady.mib = torch.cuda.max_memory_allocated() / 2**20


@pytest.mark.cuda
@pytest.mark.parametrize("compile", ["true", "cudagraphs"])
def test_compiled_feed_forwards_are_recomputed(tmp_path, compile):
    large = ("trainer.precision=bf16-mixed", "batch_tokens=65536", "seq=64", "max_steps=8")
    steady = "+callbacks.steady={_target_: tests.train.test_graphed.Steady}"
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
    spoils = "+callbacks.spoils={_target_: tests.train.test_graphed.Spoils}"
    words = (f"trainer.precision={precision}", "max_steps=12", spoils)
    with pytest.raises(RunError, match=r"step 6 .*weights that are not finite: blocks\.1\.out"):
        run(tmp_path, *GPU, *words)


@pytest.mark.cuda
def test_a_recording_that_failed_leaves_random_numbers_to_be_drawn():
    # the generator stayed that of a recording, and dropout failed in later runs of the process
    def waits() -> StepOutcome:
        torch.rand(3, device="cuda")
        raise AssertionError(torch.ones(3, device="cuda").sum().item())

    recorder = step_graphs.GraphCapture()
    with recorder.warming_up():
        torch.rand(3, device="cuda")
    torch.manual_seed(5)
    want = torch.rand(3, device="cuda")
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="capturing"):
        recorder(waits)
    assert torch.equal(torch.rand(3, device="cuda"), want)

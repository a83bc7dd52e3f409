"""Whole runs: what they compute, what they say, and when they stop."""

from __future__ import annotations

import errno
import math
import re
import textwrap

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import register_optimizer_step_post_hook

import xftrain
from tests.training.runs import (
    SMALL,
    last,
    loss_of,
    model_and_data,
    result_of,
    rows_of,
    run,
    same_weights,
    small,
    weights_of,
)
from xftrain.config import validate
from xftrain.data.counting import Counting
from xftrain.errors import ConfigError, RunError
from xftrain.training.optim.adamw import AdamW


def test_a_run_leaves_what_it_promises(tmp_path):
    run_dir = tmp_path / "a" / "run"
    result = run(run_dir, "model.attn=sdpa", "tags=[one]")

    assert result == result_of(run_dir)
    assert (result["status"], result["error"], result["steps"]) == ("completed", None, 6)
    assert (result["run_dir"], result["device"]) == (str(run_dir), "cpu")
    assert result["kernel"] == "sdpa-cpu-flash"
    assert result["overrides"] == []  # no command line
    assert set(result["versions"]) >= {"xftrain", "python", "torch", "xformers", "lightning"}
    assert result["versions"]["torch"] == torch.__version__
    assert result["tokens_per_s"] > 0 and result["wall_s"] > 0 and result["peak_memory_mib"] > 50
    assert set(result["metrics"]) == {
        "train/loss",
        "train/accuracy",
        "train/perplexity",
        "train/grad_norm",
        "optim/lr",
        "speed/tokens_per_s",
        "speed/step_ms",
        "memory/peak_mib",
        "val/loss",
        "val/accuracy",
        "val/perplexity",
    }
    names = {path.name.partition(".1")[0] for path in run_dir.iterdir()}
    assert names >= {"config.yaml", "metrics.csv", "result.json", "checkpoints"}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    # the configuration is complete: it gives the same run again
    assert validate(OmegaConf.load(run_dir / "config.yaml")) == validate(
        small("model.attn=sdpa", "tags=[one]")
    )


def test_tensorboard_and_csv_have_the_same_figures_at_the_same_steps(tmp_path):
    result = run(tmp_path, "max_steps=5")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert set(tags) == set(result["metrics"])
    for tag in tags:
        written = {event.step: event.value for event in events.Scalars(tag)}
        assert written == pytest.approx(rows_of(tmp_path, tag), rel=1e-6)
        # at every second step and at the last one; validation at 4 and where the run ended
        assert list(written) == ([4, 5] if tag.startswith("val/") else [2, 4, 5])
        assert written[5] == pytest.approx(result["metrics"][tag], rel=1e-6)
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert texts == {"kernel", "config", "speed/mfu_formula"}


def test_the_validation_figures_are_those_of_the_weights_that_were_saved(tmp_path):
    packed = ("data=counting_packed", "data.num_val_batches=3")
    result = run(tmp_path, *packed)
    model, data = model_and_data(*packed)
    model.load_state_dict(weights_of(last(tmp_path)))
    losses, correct, labels = 0.0, 0, 0
    with torch.no_grad():
        for step in range(3):
            batch = data.batch("val", step)
            losses += float(loss_of(model, batch)) * batch.num_tokens
            guesses = model(batch.tokens_BM, batch.seqlens).argmax(-1)
            correct += int((guesses == batch.labels_BM).sum())
            labels += batch.num_tokens
    assert result["metrics"]["val/loss"] == pytest.approx(losses / labels, rel=1e-5)
    assert result["metrics"]["val/accuracy"] == correct / labels
    assert result["metrics"]["val/perplexity"] == pytest.approx(math.exp(losses / labels), rel=1e-4)


def test_the_training_figures_are_those_of_the_weights_of_the_step(tmp_path):
    # the rate was once that of the step to come
    metrics = run(tmp_path, "max_steps=1", "optim.lr=0.01", "optim.warmup_steps=3")["metrics"]
    model, data = model_and_data()
    batch = data.batch("train", 0)
    loss = loss_of(model, batch)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    guesses = model(batch.tokens_BM).argmax(-1)
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["train/perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-5)
    assert metrics["train/accuracy"] == (guesses == batch.labels_BM).float().mean().item()
    assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["optim/lr"] == pytest.approx(0.01 / 4)


@pytest.mark.parametrize("clip", ["0.5", "null"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulated_batches_are_one_larger_batch(tmp_path, accumulate, clip):
    """Two steps by hand: mean gradient of all rows, clipped, AdamW with its schedule."""
    steps = (
        "max_steps=2",
        f"trainer.accumulate_grad_batches={accumulate}",
        "trainer.log_every_n_steps=1",
        f"trainer.gradient_clip_val={clip}",
    )
    run(tmp_path, *steps)
    model, data = model_and_data(*steps)
    optimizer, schedule = AdamW().build(model, max_steps=2)
    norms = {}
    for step in range(2):
        batches = [data.batch("train", step * accumulate + n) for n in range(accumulate)]
        tokens, labels = (
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("tokens_BM", "labels_BM")
        )
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()).backward()
        limit = math.inf if clip == "null" else float(clip)
        norms[step + 1] = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
        optimizer.step()
        schedule.step()
    assert rows_of(tmp_path, "train/grad_norm") == pytest.approx(norms, rel=1e-4)
    assert min(norms.values()) > 0.5  # so that it clips
    got = weights_of(last(tmp_path))
    for name, parameter in model.state_dict().items():
        assert torch.allclose(got[name], parameter, atol=2e-6), name


def test_clipping_clips(tmp_path):
    seen = []

    def note(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(float(torch.nn.utils.get_total_norm(grads)))

    for clip in ("0.25", "null"):
        hook = register_optimizer_step_post_hook(note)
        try:
            run(tmp_path, "max_steps=2", f"trainer.gradient_clip_val={clip}")
        finally:
            hook.remove()
    assert seen[:2] == pytest.approx([0.25, 0.25], rel=1e-4)
    assert min(seen[2:]) > 0.5


@pytest.mark.cuda
def test_the_gradient_norm_in_half_precision_is_unscaled(tmp_path):
    # with a fused optimizer the norm was taken before GradScaler's scale was divided out
    here = ("trainer=gpu", "max_steps=12", "trainer.log_every_n_steps=12")
    half = run(tmp_path / "half", *here, "trainer.precision=16-mixed")["metrics"]
    full = run(tmp_path / "full", *here, "trainer.precision=32-true")["metrics"]
    for name in ("train/grad_norm", "val/loss"):
        assert half[name] == pytest.approx(full[name], rel=0.05)


# ---- when it validates and stops


@pytest.mark.parametrize(("max_steps", "validated"), [(6, [4, 6]), (8, [4, 8]), (3, [3])])
def test_the_last_step_is_validated_and_once_only(tmp_path, monkeypatch, max_steps, validated):
    asked = []
    batch = Counting.batch
    monkeypatch.setattr(Counting, "batch", lambda self, *at: asked.append(at) or batch(self, *at))
    run(tmp_path, f"max_steps={max_steps}")
    assert list(rows_of(tmp_path, "val/loss")) == validated
    assert len([at for at in asked if at[0] == "val"]) == 2 * len(validated)


def test_a_solved_task_stops_and_null_goes_on(tmp_path):
    stopped = run(tmp_path / "stops", "data.stop_at_accuracy=0.0")
    assert (stopped["steps"], stopped["status"]) == (4, "completed")
    assert "val/loss" in stopped["metrics"]
    assert run(tmp_path / "goes on", "data.stop_at_accuracy=null")["steps"] == 6
    assert run(tmp_path / "unreached", "data.stop_at_accuracy=1.0")["steps"] == 6
    without = run(tmp_path / "without", "data.stop_at_accuracy=0.0", "callbacks.solved=null")
    assert without["steps"] == 6
    sanity = run(tmp_path / "sanity", "data.stop_at_accuracy=0.0", "trainer.num_sanity_val_steps=1")
    assert sanity["steps"] == 4  # not before it has begun
    assert list(rows_of(tmp_path / "sanity", "val/loss")) == [4]


@pytest.mark.slow
def test_the_counting_task_is_learned(tmp_path):
    result = run(tmp_path, "max_steps=150", "trainer.val_check_interval=10", "optim.lr=1e-2")
    assert result["metrics"]["val/accuracy"] >= 0.999
    assert result["steps"] < 150


# ---- precision, determinism, odd configurations


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sixteen_bits_on_the_cpu_train(tmp_path, precision):
    # bf16-true ended in Lightning's "A frozen dataclass was passed to apply_to_collection"
    result = run(
        tmp_path,
        f"trainer.precision={precision}",
        "model.pos=rope",
        "max_steps=12",
        "optim.lr=1e-2",
        "trainer.val_check_interval=100",
        # the sample is generated in the same precision
        "callbacks.sample={name: sample, num_tokens: 4}",
    )
    losses = rows_of(tmp_path, "train/loss")
    assert losses[12] < losses[2] - 0.3
    dtypes = {weight.dtype for weight in weights_of(last(tmp_path)).values()}
    assert dtypes == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    assert result["metrics"]["val/loss"] < losses[2]


def test_the_seed_alone_decides(tmp_path):
    for name, overrides in {
        "one": [],
        "same": ["callbacks.sample={name: sample}", "logger=none"],
        "other": ["seed=1"],
    }.items():
        run(tmp_path / name, "model.dropout=0.1", *overrides)
    assert same_weights(last(tmp_path / "one"), last(tmp_path / "same"))
    assert not same_weights(last(tmp_path / "one"), last(tmp_path / "other"))


def test_without_callbacks_and_loggers(tmp_path):
    result = run(tmp_path, "callbacks=none", "logger=none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "result.json"]
    assert (result["status"], result["tokens_per_s"]) == ("completed", None)
    assert set(result["metrics"]) == {"val/loss", "val/accuracy", "val/perplexity"}


def test_a_run_that_breaks_says_so_and_keeps_what_it_had(tmp_path, monkeypatch):
    run(tmp_path)
    assert result_of(tmp_path)["status"] == "completed"
    batch = Counting.batch

    def broken(self, split, step, rank=0):
        if (split, step) == ("train", 4):
            assert not (tmp_path / "result.json").exists()  # the earlier run's
            raise OSError("the network is down")
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", broken)
    with pytest.raises(OSError, match="the network is down"):
        run(tmp_path)
    result = result_of(tmp_path)
    assert (result["status"], result["error"]) == ("failed", "OSError: the network is down")
    assert (result["steps"], result["kernel"], result["device"]) == (4, "naive", "cpu")
    assert result["wall_s"] > 0 and result["tokens_per_s"] > 0
    assert list(rows_of(tmp_path, "train/loss")) == [2, 4]  # no rows of the earlier run


@pytest.mark.parametrize(
    ("error", "raised", "status", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RunError, "failed", "the disk of .* is"),
        # Lightning answers Ctrl-C with an exit
        (KeyboardInterrupt(), (KeyboardInterrupt, SystemExit), "stopped", ""),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
def test_how_a_run_ends_that_is_ended(tmp_path, monkeypatch, error, raised, status, said):
    batch = Counting.batch

    def ended(self, split, step, rank=0):
        if (split, step) == ("train", 3):
            raise error
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", ended)
    with pytest.raises(raised):
        run(tmp_path)
    result = result_of(tmp_path)
    assert (result["status"], result["steps"]) == (status, 3)
    assert re.search(said, result["error"])


# ---- a user's own classes

OWN = """
    import torch
    from lightning.pytorch import Callback
    from xftrain.attention.backends.naive import Naive
    from xftrain.data.counting import Counting
    from xftrain.errors import ConfigError

    class Backend(Naive):
        name = "own"
        calls = 0

        def __call__(self, *args):
            Backend.calls += 1
            return super().__call__(*args)

        def kernel(self, *facts):
            return "own-kernel"

    class Backwards(Counting):
        def batch(self, split, step, rank=0):
            batch = super().batch(split, step, rank)
            batch.labels_BM = (batch.tokens_BM - 1) % self.vocab_size
            return batch

    class Bow(torch.nn.Module):
        def __init__(self, dim, linear_bias, *, width=8):
            super().__init__()
            self.inner = torch.nn.Linear(dim, width)
            self.outer = torch.nn.Linear(width, dim)

        def forward(self, x):
            return self.outer(self.inner(x).relu())

    class Picky:
        def __init__(self, *, depth):
            raise ConfigError(f"callbacks.own.depth must be 3, got {depth}.")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of the user's own and the YAML files that name its classes."""
    (tmp_path / "own_parts.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "model/attn/own": "_target_: own_parts.Backend",
        "model/ffn/bow": "_target_: own_parts.Bow\nwidth: 12",
        "data/backwards": "_target_: own_parts.Backwards\nvocab_size: 64\nstop_at_accuracy: null",
        "callbacks/early": "early:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n"
        "  monitor: val/loss\n  patience: 1\n  min_delta: 100.0",
        "logger/own": "own:\n  _target_: lightning.pytorch.loggers.CSVLogger\n"
        f"  save_dir: {tmp_path}/elsewhere\n  name: rows\n  version: v1",
        "callbacks/picky": "own:\n  _target_: own_parts.Picky\n  depth: 4",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path / "conf"


def test_a_backend_of_the_users_own_trains(own, tmp_path):
    result = run(tmp_path / "own run", "model.attn=own", config_dir=own)
    run(tmp_path / "naive run", "model.attn=naive")
    from own_parts import Backend

    assert result["kernel"] == "own-kernel"
    assert Backend.calls > 6
    assert same_weights(last(tmp_path / "own run"), last(tmp_path / "naive run"))


def test_data_and_layers_of_the_users_own_train(own, tmp_path, caplog):
    with caplog.at_level("INFO"):
        result = run(
            tmp_path / "run",
            "data=backwards",
            "model.ffn=bow",
            "max_steps=40",
            "optim.lr=2e-2",
            config_dir=own,
        )
    assert weights_of(last(tmp_path / "run"))["blocks.0.ffn.inner.weight"].shape == (12, 32)
    # its weights start as it said, which is told
    assert "kept their own initialization: blocks.0.ffn.inner.weight" in caplog.text
    assert result["metrics"]["val/accuracy"] > 0.5  # counting down


def test_a_callback_of_lightnings_own_stops_the_run(own, tmp_path):
    steps = ("max_steps=20", "trainer.val_check_interval=2", "callbacks=[default,early]")
    result = run(tmp_path / "run", *steps, config_dir=own)
    assert result["steps"] == 4  # the second validation is no 100 better than the first


def test_a_logger_of_the_users_own_writes_where_it_says(own, tmp_path):
    result = run(tmp_path / "run", "logger=[csv,own]", config_dir=own)
    rows = (tmp_path / "elsewhere" / "rows" / "v1" / "metrics.csv").read_text()
    assert rows == (tmp_path / "run" / "metrics.csv").read_text()
    assert str(result["metrics"]["val/loss"]) in rows


def test_a_refusal_by_a_class_of_the_users_own_is_the_sentence_it_says(own, tmp_path):
    with pytest.raises(ConfigError, match="depth must be 3, got 4"):
        run(tmp_path / "run", "callbacks=[default,picky]", config_dir=own)
    assert result_of(tmp_path / "run")["status"] == "refused"


def test_text_is_trained_on_and_measured_in_bits_per_byte(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    packed = ("data=text", f"data.path={text}", "data.packing=true")
    result = run(tmp_path / "run", *packed)
    metrics = result["metrics"]
    model, data = model_and_data(*packed)
    model.load_state_dict(weights_of(last(tmp_path / "run")))
    losses, num_bytes, labels = 0.0, 0, 0
    with torch.no_grad():
        for step in range(data.num_val_batches):
            batch = data.batch("val", step)
            counted = int((batch.labels_BM != -100).sum())
            losses += float(loss_of(model, batch)) * counted
            num_bytes += data.num_label_bytes(batch.labels_BM)
            labels += counted
    assert metrics["val/loss"] == pytest.approx(losses / labels, rel=1e-5)
    assert metrics["val/bits_per_byte"] == pytest.approx(losses / math.log(2) / num_bytes, rel=1e-5)
    assert "val/perplexity" not in metrics
    baseline = data.baseline()
    assert baseline and metrics.items() >= baseline.items()
    assert list(rows_of(tmp_path / "run", "val/bits_per_byte_bigram")) == [6]


def test_the_run_folder_may_be_relative_and_is_named_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = xftrain.run(small("max_steps=1"))
    assert result["run_dir"].startswith("outputs/")
    assert (tmp_path / result["run_dir"] / "result.json").is_file()
    assert run(tmp_path / "here", "max_steps=1")["run_dir"] == "here"


def test_the_overrides_of_these_tests_are_right():
    assert validate(small())["trainer"]["accelerator"] == "cpu"
    assert len(SMALL) == len(set(SMALL))

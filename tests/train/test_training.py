"""Whole runs: what they compute, and what they leave behind."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.train.runs import (
    last,
    loss_of,
    model_and_data,
    result_of,
    rows_of,
    run,
    small,
    weights_of,
)
from xftrain.config.compose import validate
from xftrain.optim.adamw import AdamW
from xftrain.schedule.cosine import Cosine


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
        "speed/tflops",
        "memory/peak_mib",
        "val/loss",
        "val/accuracy",
        "val/perplexity",
    }
    names = {path.name.partition(".1")[0] for path in run_dir.iterdir()}
    assert names >= {"config.yaml", "metrics.csv", "result.json", "checkpoints"}
    saved = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert saved == {"last.ckpt", "best.ckpt", "weights.safetensors"}
    modes = {path.stat().st_mode for path in (run_dir / "checkpoints").iterdir()}
    assert len(modes) == 1  # who may read one of them may read all
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
    assert texts == {"kernel", "config", "data", "speed/mfu_formula", "attention/pattern"}


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
    metrics = run(tmp_path, "max_steps=1", "optim.lr=0.01", "schedule.warmup_steps=3")["metrics"]
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
    optimizer, schedule = AdamW().build(model, Cosine(), max_steps=2)
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

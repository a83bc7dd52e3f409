"""A run that a callback stops says which one and why; Lightning's own callbacks work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

import xftrain
from tests.train.runs import result_of, run, small, weights_of
from xftrain.callbacks import sample as sample_module
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import ConfigError

LIGHTNING = "lightning.pytorch.callbacks"
EMA = f"+callbacks.ema={{_target_: {LIGHTNING}.EMAWeightAveraging, decay: 0.9}}"
SAMPLE = "callbacks.sample={name: sample, num_tokens: 4}"


def said_at_the_end(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for m in (r.getMessage() for r in caplog.records) if ": stopped by " in m]


@pytest.mark.parametrize(
    ("overrides", "step", "reason"),
    [
        (
            [
                f"+callbacks.stop={{_target_: {LIGHTNING}.EarlyStopping, monitor: val/loss, "
                "patience: 1, min_delta: 100}",
            ],
            8,
            "stopped by EarlyStopping: Monitored metric val/loss did not improve in the last 1 "
            "records. Best score: ",
        ),
        (
            [
                f"+callbacks.stop={{_target_: {LIGHTNING}.EarlyStopping, monitor: train/loss, "
                "stopping_threshold: 100}",
            ],
            4,
            "stopped by EarlyStopping: Stopping threshold reached: train/loss = ",
        ),
        (
            ["data.stop_at_accuracy=0.0"],
            4,
            "stopped by Solved: the task is solved, with a validation accuracy of ",
        ),
        (
            ["trainer.max_time=00:00:00:00", "trainer.accumulate_grad_batches=2"],
            1,
            "stopped by TimeLimit: trainer.max_time=00:00:00:00 is over",
        ),
    ],
)
def test_a_run_says_which_callback_stopped_it_and_why(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    overrides: list[str],
    step: int,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    result = run(tmp_path, *overrides, "max_steps=40")
    assert (result["status"], result["steps"]) == ("completed", step)
    assert result["stop_reason"].startswith(reason)
    assert result_of(tmp_path)["stop_reason"] == result["stop_reason"]
    assert said_at_the_end(caplog) == [f"step {step} of 40: {result['stop_reason']}"]


def test_a_run_that_makes_all_its_steps_gives_no_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert run(tmp_path)["stop_reason"] is None
    assert said_at_the_end(caplog) == []


def test_a_time_limit_begins_again_with_a_resumed_run(tmp_path: Path) -> None:
    assert run(tmp_path, "trainer.max_time=00:00:00:00")["steps"] == 1
    assert run(tmp_path, "trainer.max_time=00:01:00:00", "ckpt=auto")["steps"] == 6


def test_the_sample_and_the_exported_weights_are_the_averaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sample and weights.safetensors were of the weights before averaging
    sampled = []
    generate = sample_module.generate

    def note(model, *arguments, **options):
        sampled.append({name: value.clone() for name, value in model.state_dict().items()})
        return generate(model, *arguments, **options)

    monkeypatch.setattr(sample_module, "generate", note)
    run(tmp_path / "run", EMA, SAMPLE)
    run(tmp_path / "unsaved", EMA, SAMPLE, "callbacks.checkpoint=null")
    averaged = weights_of(tmp_path / "run" / "checkpoints" / "last.ckpt")
    trained = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["current_model_state"]
    exported = load_file(tmp_path / "run" / "checkpoints" / "weights.safetensors")
    assert not torch.equal(averaged["embed.weight"], trained["model.embed.weight"])
    for name, value in averaged.items():
        assert torch.equal(value, exported[name])
        assert all(torch.equal(value, weights[name]) for weights in sampled)


def test_a_run_with_averaged_weights_is_resumed_exactly_and_only_with_them(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", EMA)
    run(tmp_path / "half", EMA, "max_steps=4", "schedule=constant")
    run(tmp_path / "other", EMA, "schedule=constant")
    resumed = run(tmp_path / "half", EMA, "schedule=constant", "ckpt=auto")
    assert resumed["steps"] == whole["steps"] == 6
    first, second = (
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("half", "other")
    )
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, second[key][name]) for name, value in first[key].items())
    with pytest.raises(ConfigError, match="^ckpt holds averaged weights beside the trained ones"):
        run(tmp_path / "half", "schedule=constant", "ckpt=auto", "max_steps=8")


def test_a_sample_of_the_checkpoint_is_of_the_averaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run", EMA)
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    from xftrain.commands import sample

    built = []
    generate = sample.generate_texts

    def note(model, *arguments, **options):
        built.append(model.embed.weight)
        return generate(model, *arguments, **options)

    monkeypatch.setattr(sample, "generate_texts", note)
    xftrain.run(
        xftrain.compose(f"ckpt={ckpt}", "num_tokens=2", "accelerator=cpu", config_name="sample"),
        tmp_path / "sampled",
    )
    assert torch.equal(built[0], weights_of(ckpt)["embed.weight"])


def test_the_summary_of_the_layers_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, f"+callbacks.summary={{_target_: {LIGHTNING}.ModelSummary, max_depth: 2}}")
    assert "| model.embed" in caplog.text and "Trainable params" in caplog.text


def test_the_learning_rate_is_monitored(tmp_path: Path) -> None:
    run(tmp_path, f"+callbacks.lr={{_target_: {LIGHTNING}.LearningRateMonitor}}")
    assert "lr-AdamW" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("LearningRateFinder", "-m optim.lr=3e-4,1e-3,3e-3"),
        ("BatchSizeFinder", "batch_tokens"),
        ("StochasticWeightAveraging, swa_lrs: 0.1", "EMAWeightAveraging"),
        ("TQDMProgressBar", "callbacks.progress.style=rich"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_with_what_to_use(
    tmp_path: Path, name: str, advice: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        run(tmp_path, f"+callbacks.own={{_target_: {LIGHTNING}.{name}}}")
    said = str(refusal.value)
    assert said.startswith(f"callbacks.own: {name.partition(',')[0]} does not work here, as ")
    assert advice in said


def test_debug_presets_make_all_their_steps(tmp_path: Path) -> None:
    # profiler and limit ended at step 20, where the task is solved
    for preset in ("profiler", "limit"):
        cfg = small(f"debug={preset}", "data.stop_at_accuracy=0.0")
        cfg.max_steps = steps = min(cfg.max_steps, 22)
        cfg.trainer.val_check_interval = 5
        assert xftrain.run(cfg, tmp_path / preset)["steps"] == steps


def test_a_callback_of_the_users_own_is_named_without_a_reason(tmp_path: Path) -> None:
    own = f"+callbacks.own={{_target_: {__name__}.Once}}"
    assert run(tmp_path, own)["stop_reason"] == "stopped by Once"


class Once(Callback):
    """Ends a run after a step."""

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = True

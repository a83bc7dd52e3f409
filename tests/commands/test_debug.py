"""Every debug preset on disk runs; what their keys of the trainer do."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import DictConfig

from xftrain import compose, run
from xftrain.config.compose import validate
from xftrain.config.registry import conf_dir
from xftrain.data.counting import Counting
from xftrain.errors import ConfigError
from xftrain.train.loader import TrainStream, ValBatches

NAMES = sorted(path.stem for path in (conf_dir() / "debug").glob("*.yaml"))
TINY = (
    *("model.attn=naive", "model.dim=16", "model.num_layers=1", "model.num_heads=2"),
    *("seq=16", "batch_tokens=64", "trainer.accelerator=cpu", "callbacks.sample=null"),
)
SAVE_NOTHING = ("default", "fdr")

Asked = list[tuple[str, int]]


def tiny(*overrides: str) -> DictConfig:
    cfg = compose(*TINY, *overrides)
    cfg.max_steps = min(cfg.max_steps, 4)
    return cfg


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Records the batches that a run loads: split and index."""
    seen: Asked = []
    batch = Counting.batch

    def note(self, split, step, rank=0):
        seen.append((split, step))
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", note)
    return seen


# ---- presets


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_runs(tmp_path: Path, name: str) -> None:
    cfg = tiny(f"debug={name}")
    result = run(cfg, tmp_path)
    assert (result["status"], result["steps"]) == ("completed", cfg.max_steps)
    saved = {path.name for path in tmp_path.iterdir()} - {
        *("config.yaml", "result.json", ".lock", ".run.json")
    }
    assert bool(saved) == (name not in SAVE_NOTHING)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_does_without_callbacks(name: str) -> None:
    validate(compose(f"debug={name}", "callbacks=none"))


def test_a_preset_beats_an_experiment_and_what_is_typed_beats_both() -> None:
    cfg = compose("experiment=tutorial", "debug=default", "max_steps=3")
    assert (cfg.trainer.precision, cfg.trainer.log_every_n_steps, cfg.max_steps) == (
        "32-true",
        1,
        3,
    )


def test_fdr_is_one_step_and_one_validation_batch(tmp_path: Path, asked: Asked) -> None:
    run(tiny("debug=fdr", "data.num_val_batches=3"), tmp_path)
    # before it, one of each is looked at
    assert asked == [("val", 0), ("train", 0), ("train", 0), ("val", 0)]


def test_default_shows_what_is_meant_for_debugging() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose("train", ["debug=default"], return_hydra_config=True)
    logging = composed.hydra.job_logging
    assert (logging.loggers.xftrain.level, logging.root.level) == ("DEBUG", "INFO")


# ---- the trainer's keys


def test_overfitting_repeats_the_batches_and_validates_on_them(
    tmp_path: Path, asked: Asked
) -> None:
    steps = ("trainer.overfit_batches=2", "trainer.val_check_interval=3")
    run(tiny(*steps, "max_steps=3"), tmp_path)
    trained = [("train", 0), ("train", 1), ("train", 0)]
    validated = [("train", 0), ("train", 1)]
    seen_before = [("train", 0), ("train", 0)]  # for labels, and for the shapes of a step
    prompt = [("val", 0)]  # saved for a sample
    assert asked == [*seen_before, *trained, *validated, *prompt]

    asked.clear()
    run(tiny(*steps, "max_steps=4", "ckpt=auto"), tmp_path)  # goes on with the second batch
    assert asked == [*seen_before, *prompt, ("train", 1), *validated]


def test_each_rank_overfits_its_own_batches() -> None:
    data = Counting(16, 2, 0, world_size=2)
    trained = iter(TrainStream(data, rank=1, overfit_batches=1))
    (validated,) = ValBatches(data, rank=1, world_size=2, overfit_batches=1)
    expected = data.batch("train", 0, rank=1).tokens_BM
    for batch in (next(trained), next(trained), validated):
        assert torch.equal(batch.tokens_BM, expected)


def test_no_baseline_stands_beside_figures_of_other_batches(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    text = ("data=text", f"data.path={tmp_path / 'text.txt'}", "max_steps=1")
    for keys, expected in (([], True), (["trainer.limit_val_batches=1"], False)):
        metrics = run(tiny(*text, *keys, "logger=none"), tmp_path / "run")["metrics"]
        assert ("val/bits_per_byte_bigram" in metrics) == expected


@pytest.mark.parametrize("detect", [True, False])
def test_detect_anomaly_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detect: bool
) -> None:
    seen = []
    batch = Counting.batch

    def note(self, *at):
        seen.append(torch.is_anomaly_enabled())
        return batch(self, *at)

    monkeypatch.setattr(Counting, "batch", note)
    run(tiny("debug=fdr", f"trainer.detect_anomaly={detect}"), tmp_path)
    assert seen == [False, False, detect, detect]  # two are looked at before a step and validation


@pytest.mark.parametrize(
    ("profiler", "expected"),
    [
        ("simple", "run_training_batch"),
        ("advanced", "optimizer_step"),
        ("pytorch", "aten::"),  # which operators are listed depends on their times
    ],
)
def test_a_profile_is_written_and_said_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, profiler: str, expected: str
) -> None:
    with caplog.at_level("INFO"):
        # the schedule of pytorch's has five steps
        run(
            compose(*TINY, "debug=profiler", f"trainer.profiler={profiler}", "max_steps=5"),
            tmp_path,
        )
    report = tmp_path / "fit-profile.txt"
    assert f"profile: {report}" in caplog.text
    assert expected in report.read_text()
    assert bool(list(tmp_path.glob("*.trace.json"))) == (profiler == "pytorch")


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("profiler=simpel", "one of simple, advanced, pytorch or null, got 'simpel'."),
        ("limit_val_batches=-1", "an integer >= 0 or null, got -1."),
        ("overfit_batches=-1", "an integer >= 0, got -1."),
        ("detect_anomaly=maybe", "true or false, got 'maybe'."),
    ],
)
def test_a_wrong_value_is_one_sentence(override: str, rule: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate(compose(f"trainer.{override}"))
    assert str(refusal.value) == f"trainer.{override.partition('=')[0]} must be {rule}"

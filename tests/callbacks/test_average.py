"""The average of the weights: what it is, what it costs training, and where it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from weakref import ReferenceType, ref

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import VOCAB, options
from tests.train import runs
from tests.train.runs import infinite_loss, last, run, same_weights, small
from xftrain.callbacks.average import Average
from xftrain.checkpoint.averaged_weights import AVERAGED, checked_averages
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import builder
from xftrain.commands.builder import assemble
from xftrain.commands.preflight import first_batch
from xftrain.commands.prepare import prepare
from xftrain.commands.trained_model import load_trained_model
from xftrain.config.command_configs import SampleConfig
from xftrain.config.compose import compose, validate, validate_as
from xftrain.config.option_checks import checked_option
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.memory.prediction import predict
from xftrain.train.module import TrainingModule

AVERAGE = ("callbacks=[default,average]", "callbacks.average.decay=0.8")
AVERAGE += ("callbacks.average.warmup=false",)
QUIET = ("logger=none", "callbacks.attention_pattern=null", "callbacks.watchdog=null")
TIED = (*QUIET, "model.tie_embeddings=true", "schedule=constant")


class Notes(Callback):
    """Notes the weights at the start and after each step."""

    last: Notes

    def __init__(self) -> None:
        Notes.last, self.weights = self, []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: object) -> None:
        if len(self.weights) <= trainer.global_step:
            self._note(pl_module)

    def _note(self, module: Any) -> None:
        state = module.state_dict()
        self.weights.append({name: weight.double().clone() for name, weight in state.items()})


NOTES = f"+callbacks.notes={{_target_: {__name__}.Notes}}"


def averages_of(folder: Path) -> dict[str, Tensor]:
    found = checked_averages(read_checkpoint(last(folder)), "ckpt")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("average")
    run(folder, *AVERAGE, *TIED, NOTES)
    return folder


def test_it_is_the_exponential_average_of_the_weights_after_each_step(trained: Path) -> None:
    weights = Notes.last.weights
    expected, got = weights[0], averages_of(trained)
    for one in weights[1:]:
        expected = {name: 0.8 * expected[name] + 0.2 * one[name] for name in one}
    assert got.keys() == expected.keys() and "model.head.weight" in got
    for name, average in got.items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(average.double(), weights[-1][name])
    shared = got["model.head.weight"], got["model.embed.weight"]
    assert shared[0].data_ptr() == shared[1].data_ptr()


def test_a_resumed_run_has_the_same_average_and_training_does_not_read_it(
    trained: Path, tmp_path: Path
) -> None:
    validated = (*AVERAGE, *TIED, "callbacks.average.validate=true")
    run(tmp_path / "half", *validated, "max_steps=3")
    with pytest.raises(ConfigError, match="averaged weights, which this run would not continue"):
        run(tmp_path / "half", *TIED, "ckpt=auto")
    run(tmp_path / "half", *validated, "ckpt=auto")
    drops = ("ckpt=auto", "ckpt_allow=[callbacks.average]", "max_steps=6")
    assert run(tmp_path / "half", *TIED, *drops)["steps"] == 6
    first, second = (averages_of(folder) for folder in (trained, tmp_path / "half"))
    assert all(torch.equal(average, second[name]) for name, average in first.items())
    run(tmp_path / "none", *TIED)
    for folder in ("half", "none"):
        assert same_weights(last(trained), last(tmp_path / folder))
    content = read_checkpoint(last(tmp_path / "none"))
    assert checked_averages(content, "ckpt") is None


def test_updates_are_counted_in_steps_and_skipped_ones_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infinite_loss(monkeypatch, lambda trainer: trainer.global_step == 3)
    keys = ("callbacks.average.start_step=1", "callbacks.average.every_n_steps=2")
    words = ("on_nonfinite=skip", "trainer.accumulate_grad_batches=2", "max_steps=6")
    run(tmp_path, *AVERAGE, *TIED, NOTES, *keys, *words)
    weights = Notes.last.weights
    assert len(weights) == 7 and torch.equal(*(weights[n]["model.embed.weight"] for n in (3, 4)))
    expected = weights[1]
    for step in (2, 6):  # not 4, which is skipped
        expected = {name: 0.8 * one + 0.2 * weights[step][name] for name, one in expected.items()}
    for name, average in averages_of(tmp_path).items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-6, atol=1e-7)


class _Trainer(SimpleNamespace):
    """A trainer of a model of one weight, whose GradScaler's scale a test sets."""

    def step(self, callback: Average, weight: float, *, skips: float = 0.0, scale: float) -> float:
        self.global_step += 1
        self.module.model.weight.data.fill_(weight)
        self.module.guard.must_skip = torch.tensor(skips)
        self.module.scaler.scale = lambda one: one * scale
        callback.on_train_batch_end(self, self.module)
        (average,) = callback._averages.values()
        return float(average)


def trainer_of_one_weight() -> _Trainer:
    module = Mock(spec=TrainingModule)
    module.device, module.model = torch.device("cpu"), nn.Linear(1, 1, bias=False)
    module.model.weight.data.zero_()
    module.guard, module.scaler = SimpleNamespace(), SimpleNamespace(scale=lambda one: one * 4)
    return _Trainer(module=module, global_step=0)


@pytest.mark.parametrize("on_host", [True, False])
def test_a_step_that_overflows_in_float16_does_not_count(on_host: bool, monkeypatch) -> None:
    update = Average._update
    monkeypatch.setattr(
        Average, "_update", lambda self, skipped, on_host: update(self, skipped, on_host=HOST[0])
    )
    HOST[:] = [on_host]
    callback, trainer = Average(warmup=False, decay=0.5), trainer_of_one_weight()
    callback.on_train_start(trainer, trainer.module)  # type: ignore[arg-type]
    assert trainer.step(callback, 8.0, scale=4) == 4.0
    assert trainer.step(callback, 8.0, scale=2) == 4.0  # GradScaler skipped the step
    assert trainer.step(callback, 8.0, skips=1.0, scale=2) == 4.0  # the guard did
    assert trainer.step(callback, 8.0, scale=4) == 6.0  # the scale grows
    trainer.global_step -= 1
    assert trainer.step(callback, 0.0, scale=4) == 6.0  # another micro-batch of that step


HOST = [True]


def test_the_first_updates_have_smaller_decays() -> None:
    callback, trainer = Average(start_step=1, decay=0.3), trainer_of_one_weight()
    callback.on_train_start(trainer, trainer.module)  # type: ignore[arg-type]
    trainer.step(callback, 8.0, scale=4)  # the average begins
    first = trainer.step(callback, 0.0, scale=4)
    assert first == pytest.approx(8.0 * 2 / 11)
    second = trainer.step(callback, 0.0, scale=4)
    assert second == pytest.approx(first * 3 / 12)
    assert trainer.step(callback, 0.0, scale=4) == pytest.approx(second * 0.3)  # not 4 / 13


def test_validation_reads_the_average_and_training_goes_on_with_its_weights() -> None:
    callback, trainer = Average(warmup=False, decay=0.5, validate=True), trainer_of_one_weight()
    module, weight = trainer.module, trainer.module.model.weight
    callback.on_train_start(trainer, module)  # type: ignore[arg-type]
    trainer.step(callback, 8.0, scale=4)
    for end in (callback.on_validation_epoch_end, callback.on_exception):
        callback.on_validation_epoch_start(trainer, module)  # type: ignore[arg-type]
        assert float(weight.detach()) == 4.0
        end(trainer, module, *([SystemExit()] if end == callback.on_exception else []))  # type: ignore
        assert float(weight.detach()) == 8.0
    callback.on_validation_epoch_end(trainer, module)  # type: ignore[arg-type]
    assert float(weight.detach()) == 8.0


def loaded(path: Path, *words: str) -> dict[str, Tensor]:
    cfg = compose(f"ckpt={path}", *words, config_name="sample")
    return load_trained_model(cfg, validate_as(SampleConfig, cfg)).model.state_dict()


def test_commands_take_the_weights_that_are_asked_for(trained: Path, tmp_path: Path) -> None:
    ckpt, average = last(trained), averages_of(trained)
    state = runs.weights_of(ckpt)
    for words, expected in (((), state), (("weights=average",), None)):
        for name, weight in loaded(ckpt, *words).items():
            assert torch.equal(
                weight, average[f"model.{name}"] if expected is None else state[name]
            )
    cfg = validate_as(RunConfig, small(*TIED, f"init_from={ckpt}", "init_weights=average"))
    found = prepare(cfg, cfg.to_dict(), tmp_path).initial
    assert found is not None
    assert torch.equal(found.read()["embed.weight"], average["model.embed.weight"])


def test_a_checkpoint_without_an_average_is_refused(trained: Path, tmp_path: Path) -> None:
    content, ckpt = read_checkpoint(last(trained)), tmp_path / "without.ckpt"
    del content[AVERAGED]
    torch.save(content, ckpt)
    with pytest.raises(ConfigError, match="^ckpt holds no averaged weights: leave weights=average"):
        loaded(ckpt, "weights=average")
    for path in (ckpt, last(trained).with_name("weights.safetensors")):
        cfg = validate_as(RunConfig, small(*TIED, f"init_from={path}", "init_weights=average"))
        with pytest.raises(ConfigError, match="no averaged weights: leave init_weights"):
            prepare(cfg, cfg.to_dict(), tmp_path)
    with pytest.raises(ConfigError, match="init_weights=average needs init_from"):
        validate(compose("init_weights=average"))


@pytest.mark.parametrize(
    "averages",
    [
        [],
        {"model.other": torch.zeros(2)},
        {"model.w": torch.zeros(3)},
        {"model.w": torch.zeros(2, dtype=torch.int64)},
        {"model.w": 1.0},
    ],
)
def test_averages_of_another_model_are_refused(averages: object) -> None:
    content = {"state_dict": {"model.w": torch.zeros(2)}, "averaged_weights": averages}
    with pytest.raises(ConfigError, match="averaged weights of another model"):
        checked_averages(content, "ckpt")


@pytest.mark.parametrize("on_host", [True, False])
def test_an_update_widens_one_bfloat16_weight_at_a_time(on_host: bool) -> None:
    """It held a float32 copy of all weights, which the predicted memory does not have."""
    callback, trainer = Average(warmup=False, decay=0.5), trainer_of_one_weight()
    layers = [nn.Linear(1, 1, bias=False, dtype=torch.bfloat16) for _ in range(4)]
    trainer.module.model = nn.Sequential(*layers)
    callback.on_train_start(trainer, trainer.module)  # type: ignore[arg-type]
    before = [float(one) for one in callback._averages.values()]
    for layer in layers:
        layer.weight.data.fill_(8.0)
    wide: list[ReferenceType[Tensor]] = []
    numbers = []

    class Wide(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            made = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default:
                wide.append(ref(made))
            numbers.append(sum(one() is not None for one in wide))
            return made

    with Wide():
        callback._update(torch.tensor(0.0), on_host=on_host)
    assert len(wide) == 4 and max(numbers) <= 2  # the next one before the last one is freed
    after = [float(one) for one in callback._averages.values()]
    assert after == pytest.approx([(8.0 + one) / 2 for one in before])


def test_a_run_that_ends_before_its_average_begins_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    callback, trainer = Average(start_step=9), trainer_of_one_weight()
    callback.on_train_start(trainer, trainer.module)  # type: ignore[arg-type]
    callback.on_train_end(trainer, trainer.module)  # type: ignore[arg-type]
    assert "average.start_step=9, and the run has ended at step 0" in caplog.text


def test_an_average_without_a_weight_of_the_model_is_refused() -> None:
    """It ended in a KeyError."""
    module = trainer_of_one_weight().module
    content = {"state_dict": {"model.weight": torch.zeros(1, 1)}, "averaged_weights": {}}
    with pytest.raises(ConfigError, match="without 1 of the model's, first weight: give another"):
        Average().on_load_checkpoint(Mock(), module, content)


def test_the_predicted_memory_has_a_copy_of_the_weights() -> None:
    peaks = []
    for callbacks in ({}, {"average": checked_option("callbacks.average", {"name": "average"})}):
        cfg = replace(options(), callbacks=callbacks)
        model, batch = assemble(cfg.model, VOCAB), first_batch(builder.build_data(cfg), 0)
        given = (model, builder.build_loss(cfg), batch, torch.float32, torch.device("cpu"))
        peaks.append(predict(cfg, *given).optimizer)
    assert peaks[1] - peaks[0] == 4 * sum(weight.numel() for weight in model.parameters())

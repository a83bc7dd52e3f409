"""What a run says while it goes on: enough to see it move, and no more."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks.progress import rich_progress
from rich.console import Console

from xftrain import compose
from xftrain.callbacks.progress import Progress, interval_at
from xftrain.config.compose import validate
from xftrain.config.tree import config_tree
from xftrain.train.module import TrainingModule
from xftrain.utils.console import ConsoleHandler

FIGURES = {
    "train/loss": 4.1234,
    "train/accuracy": 1.0,
    "train/bits_per_byte": 4.321,
    "speed/tokens_per_s": 123456.0,
    "val/loss": 4.1234,
    "val/accuracy": 1.0,
    "val/bits_per_byte": 4.321,
}


def lines_of(caplog, max_steps: int, *, first: int = 1, validate_every: int = 20, **options):
    """The lines of a run that records every 10 steps."""
    caplog.clear()
    progress = Progress(style="line", **options)
    module = TrainingModule(None, None, None, None, None, seed=0, saved={}, guard=None)
    module.latest_metrics = FIGURES
    trainer = SimpleNamespace(
        max_steps=max_steps,
        global_step=first - 1,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
    )
    with caplog.at_level("INFO"):
        progress.on_train_start(trainer, module)
        for step in range(first, max_steps + 1):
            trainer.global_step = step
            if step % 10 == 0 or step == max_steps:
                module.recorded_at = step
            progress.on_train_batch_end(trainer, module, None, None, step - 1)
            if step % validate_every == 0:
                progress.on_validation_end(trainer, module)
        if max_steps % validate_every:
            trainer.state.fn = "validate"
            progress.on_validation_end(trainer, module)
    return [record.getMessage() for record in caplog.records]


def starts(lines: list[str]) -> list[str]:
    return [line.partition("  ")[0] for line in lines]


def test_two_thousand_steps_are_said_in_less_than_20_kb(caplog):
    lines = [config_tree(validate(compose()).to_dict()), *lines_of(caplog, 2000)]
    assert len(lines) == 1 + 42 + 42
    stamped = [f"[00:00:00] {line}\n" for line in lines]
    # a run adds twenty lines around them
    assert sum(len(line.encode()) for line in stamped) < 20_000 - 20 * 100


@pytest.mark.parametrize(
    ("max_steps", "steps"),
    [(1, 20), (400, 20), (1000, 20), (1001, 50), (2500, 50), (2501, 100), (10**6, 20_000)],
)
def test_the_interval_grows_with_the_run(max_steps, steps):
    assert interval_at(max_steps, max_steps) == steps


def test_a_long_run_begins_to_speak_at_once(caplog):
    lines = starts(lines_of(caplog, 20_000, validate_every=20_000))
    steps = [int(line[5:-6]) for line in lines if line.startswith("step")]
    assert steps[:9] == [20, 40, 50, 100, 200, 400, 500, 1000, 1500]
    assert (steps[-1], len(steps)) == (20_000, 46)


def test_the_ends_of_training_and_of_the_run_are_always_said(caplog):
    assert starts(lines_of(caplog, 5)) == ["step 5/5", "validation at step 5"]
    assert starts(lines_of(caplog, 25, every_n_steps=20)) == [
        "step 20/25",
        "validation at step 20",
        "step 25/25",
        "validation at step 25",
    ]


def test_validations_that_are_rare_are_all_said(caplog):
    lines = starts(lines_of(caplog, 1000, validate_every=250, every_n_steps=100))
    assert [line for line in lines if line.startswith("validation")] == [
        f"validation at step {step}" for step in (250, 500, 750, 1000)
    ]


def test_a_run_that_goes_on_keeps_the_rhythm(caplog):
    lines = starts(lines_of(caplog, 100, first=31, every_n_steps=50))
    assert lines == [
        "step 50/100",
        "validation at step 60",
        "step 100/100",
        "validation at step 100",
    ]


def test_the_bar_counts_the_batches_of_the_whole_run():
    # it counted the steps that were left, 100 of them in place of 1600 batches
    bar = Progress(style="rich").bar()
    bar._trainer = SimpleNamespace(max_steps=400, global_step=300, accumulate_grad_batches=4)
    assert bar.total_train_batches == 1600
    assert Progress(style="line").bar() is None


def test_the_console_follows_stdout(capsys, monkeypatch):
    # lines that went past the bar's own stream were erased when the bar was drawn again
    handler = ConsoleHandler()
    above_the_bar: list[str] = []
    stream = SimpleNamespace(write=above_the_bar.append, flush=lambda: None)
    monkeypatch.setattr("sys.stdout", stream)
    handler.handle(logging.makeLogRecord({"msg": "validation"}))
    assert "".join(above_the_bar) == "validation\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_bar_fits_a_line_of_the_terminal(monkeypatch, width):
    # at 80 columns its figures were broken into several lines
    console = Console(width=width, file=io.StringIO())
    monkeypatch.setattr(rich_progress, "get_console", lambda: console)
    monkeypatch.setattr(rich_progress, "reconfigure", lambda **_: None)
    bar, module = Progress(style="rich").bar(), TrainingModule(*[None] * 5, 0, {}, None)
    module.latest_metrics = FIGURES
    bar._trainer = SimpleNamespace(
        max_steps=100_000,
        global_step=20_000,
        accumulate_grad_batches=1,
        training=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        progress_bar_callback=bar,
    )
    bar._init_progress(bar._trainer)
    bar.train_progress_bar_id = bar._add_task(bar.total_train_batches, "training")
    bar._metric_component.update(bar.get_metrics(bar._trainer, module))
    shown = Console(width=width, file=io.StringIO())
    shown.print(bar.progress.get_renderable())
    bar.progress.stop()
    (line,) = filter(str.strip, shown.file.getvalue().splitlines())
    assert len(line) <= width
    assert all(part in line for part in ("0/100000", "loss: 4.1234", "tok/s: 123,456"))

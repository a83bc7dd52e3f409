"""TensorBoard's HParams tab over single runs; tests/multirun/test_sweeps.py has that of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tensorboards import are_last_metrics, hparams_tab, steps_of
from tests.train.runs import result_of, run

pytestmark = pytest.mark.slow


def broken() -> Any:
    from lightning.pytorch import Callback

    class Broken(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            raise ValueError("on purpose")

    return Broken()


def test_the_tab_has_every_run_with_its_real_last_metrics(tmp_path: Path) -> None:
    for lr in ("1e-3", "2e-3"):
        run(tmp_path / lr, "model.attn=naive", f"optim.lr={lr}")
    with pytest.raises(Exception, match="on purpose"):
        run(tmp_path / "broken", "+callbacks.broken._target_=tests.train.test_hparams.broken")

    shown = hparams_tab(tmp_path, ["optim.lr", "model.attn.name", "compile"], num_runs=3)

    assert len(shown) == 3
    for lr in ("1e-3", "2e-3"):
        hparams, values = shown[lr]
        assert hparams == {"optim.lr": float(lr), "model.attn.name": "naive", "compile": "false"}
        are_last_metrics(values, result_of(tmp_path / lr)["metrics"])
    assert shown["broken"][1] == {}  # it is there, and has no point that nobody measured


def test_no_point_is_written_that_was_not_measured(tmp_path: Path) -> None:
    run(tmp_path, "model.attn=naive")
    steps = steps_of(tmp_path)
    assert steps and all(min(at) > 0 for at in steps.values()), steps

"""The memory plan counts what an own optimizer keeps, or says that it does not know."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.train.runs import model_and_data, run
from xftrain.optim.adamw import AdamW


class Silent:
    """An optimizer without `state_bytes`."""

    def __init__(self, lr: float = 0.01) -> None:
        self.inner = AdamW(lr=lr)

    def build(self, model, schedule, max_steps):
        return self.inner.build(model, schedule, max_steps)

    def update_saved(self, *saved) -> None:
        self.inner.update_saved(*saved)


class Heavy(Silent):
    """An optimizer that declares ten numbers of state per weight."""

    def state_bytes(self, parameter: torch.Tensor) -> int:
        return 10 * parameter.nbytes


@pytest.fixture
def own(tmp_path):
    for kind in (Silent, Heavy):
        path = tmp_path / "own" / "optim" / f"{kind.__name__.lower()}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"_target_: {kind.__module__}.{kind.__name__}\nlr: 0.01\n")
    return {"config_dir": tmp_path / "own"}


def test_its_state_is_counted_or_said_to_be_unknown(tmp_path, caplog, own):
    # nothing showed whether it was counted at all
    words = ("max_steps=1",)
    model, _ = model_and_data()
    weights_mib = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    predicted, said = {}, {}
    for name in ("adamw", "silent", "heavy"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            result = run(tmp_path / name, f"optim={name}", *words, **own)
        predicted[name], said[name] = result["predicted_peak_mib"], "no state_bytes" in caplog.text
    assert predicted["silent"] == predicted["adamw"]
    grown = predicted["heavy"] - predicted["adamw"]
    assert grown == pytest.approx(8 * weights_mib, abs=0.11)  # rounded
    assert grown > 0.5
    assert said == {"adamw": False, "silent": True, "heavy": False}

"""The scale of 16-mixed is taken from a checkpoint, and the factors by which it changes are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xftrain.train.restored import restore_loss_scale

SAVED: dict[str, Any] = {
    "scale": 1024.0,
    "growth_factor": 1.0,
    "backoff_factor": 1.0,
    "growth_interval": 2**60,
    "_growth_tracker": 7,
}


def test_a_foreign_scaler_changes_no_setting():
    scaler = torch.amp.GradScaler("cpu")
    checkpoint = {"MixedPrecision": SAVED, "loops": {}}
    restore_loss_scale(checkpoint, scaler)
    own = scaler.state_dict()
    assert checkpoint["MixedPrecision"] == {**own, "scale": 1024.0, "_growth_tracker": 7}
    restore_loss_scale(checkpoint, None)
    assert checkpoint == {"loops": {}}


@pytest.mark.parametrize(
    "wrong",
    [{"scale": float("inf")}, {"scale": 0.0}, {"scale": "x"}, {"_growth_tracker": -1}],
)
def test_a_scale_that_training_never_comes_to_is_refused(wrong):
    with pytest.raises(ValueError, match="scale"):
        restore_loss_scale({"MixedPrecision": SAVED | wrong}, torch.amp.GradScaler("cpu"))

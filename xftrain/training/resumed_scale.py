"""What a resumed run in 16-mixed takes from its checkpoint: the loss scale, and no setting of it.

Lightning gives GradScaler whatever the checkpoint holds, which may come from anyone: with an
infinite scale that never falls, no step would be made and no run would end.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.precision import Precision

from xftrain.training.plain_values import is_count

# Where Lightning looks; the second is of its former versions.
_PLACES = ("MixedPrecision", "native_amp_scaling_state")
_LEAST, _MOST = 2.0**-8, 2.0**64  # of a scale; below the first the run would have ended


def keep_own_scaling(checkpoint: dict[str, Any], precision: Precision) -> None:
    """Leaves the scale and its count of steps in the checkpoint; all else is as this run has it.

    Args:
        checkpoint: as it was read; what GradScaler is restored from is changed in place.
        precision: of this run, before it is restored.

    Raises:
        ValueError: the scale is not one that a run saves.
    """
    held = [checkpoint.pop(place) for place in _PLACES if place in checkpoint]
    scaler = getattr(precision, "scaler", None)
    own = {} if scaler is None else scaler.state_dict()
    if not held or not own:
        return
    scale, num_steps = held[0]["scale"], held[0]["_growth_tracker"]
    if type(scale) is not float or not _LEAST <= scale <= _MOST:
        raise ValueError("its loss scale is not one that 16-mixed trains with")
    if not is_count(num_steps) or num_steps >= own["growth_interval"]:
        raise ValueError("the number of steps since its loss scale grew is not one that is saved")
    checkpoint[type(precision).__qualname__] = {
        **own,
        "scale": scale,
        "_growth_tracker": num_steps,
    }

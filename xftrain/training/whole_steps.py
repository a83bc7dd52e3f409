"""Batches are counted in whole optimizer steps, also after the accumulation has changed.

Lightning saves how many batches a run has had, and takes the remainder by
`accumulate_grad_batches` to tell where a step begins and ends. After a change of that number the
first step would have part of its batches.
"""

from __future__ import annotations

from typing import Any

_COUNTS = ("ready", "started", "processed", "completed")


def renumber_batches(checkpoint: dict[str, Any], batches_per_step: int) -> int:
    """Makes a checkpoint's batches as many as its steps have with today's accumulation.

    All that goes by the number of a batch, validations included, is then as in a run that has had
    this accumulation from the start. Which data comes next does not change.

    Args:
        checkpoint: as it was saved, at the end of a step; its counters are changed in place.
        batches_per_step: `trainer.accumulate_grad_batches`.

    Returns:
        What to add to the number of a batch for its number in the data.
    """
    loop = checkpoint["loops"]["fit_loop"]
    num_batches = int(checkpoint["global_step"]) * batches_per_step
    progress = loop["epoch_loop.batch_progress"]
    missing = num_batches - int(progress["current"]["ready"])
    for counts in (progress["total"], progress["current"]):
        for name in _COUNTS:
            counts[name] += missing
    return int(loop["state_dict"]["combined_loader"][0]["next_step"]) - num_batches

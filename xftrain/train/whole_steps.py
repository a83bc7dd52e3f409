"""Renumbers the batches of a checkpoint if gradient accumulation has changed.

Lightning saves the number of batches of a run; steps end where that number is divisible by
`accumulate_grad_batches`. If `accumulate_grad_batches` changes, the first step would have only part
of its batches.
"""

from __future__ import annotations

from typing import Any

_COUNTS = ("ready", "started", "processed", "completed")


def renumber_batches(checkpoint: dict[str, Any], batches_per_step: int) -> int:
    """Sets the batch count of a checkpoint to its steps times the accumulation of this run.

    Everything that depends on the batch index, such as validation, is then as in a run with this
    accumulation from the start. The next data does not change.

    Args:
        checkpoint: as it was saved, at the end of a step; its counters are changed in place.
        batches_per_step: `trainer.accumulate_grad_batches`.

    Returns:
        The offset to add to Lightning's batch index to get the micro-step of the data.
    """
    loop = checkpoint["loops"]["fit_loop"]
    num_batches = int(checkpoint["global_step"]) * batches_per_step
    progress = loop["epoch_loop.batch_progress"]
    missing = num_batches - int(progress["current"]["ready"])
    for counts in (progress["total"], progress["current"]):
        for name in _COUNTS:
            counts[name] += missing
    return int(loop["state_dict"]["combined_loader"][0]["next_step"]) - num_batches

"""Progress that is no step of training, such as text that a run waits for and that is prepared."""

from __future__ import annotations

_num_beats = 0


def beat() -> None:
    """Records progress, so that a run that waits is not taken for one that hangs."""
    global _num_beats
    _num_beats += 1


def num_beats() -> int:
    """How often progress has been recorded."""
    return _num_beats

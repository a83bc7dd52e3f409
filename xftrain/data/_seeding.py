"""Random seeds as a pure function of the batch index, so that no state needs to be saved."""

import numpy as np

from xftrain.interfaces import Split


def generator(seed: int, split: Split, step: int, rank: int) -> np.random.Generator:
    """The random stream of one batch; equal arguments give equal batches on any machine."""
    # the validation set does not depend on the seed, so that runs can be compared
    key = (0, 1, step, rank) if split == "val" else (seed, 0, step, rank)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

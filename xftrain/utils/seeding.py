"""Random seeds as a pure function of the batch index, so that no state needs to be saved."""

import hashlib

import numpy as np

from xftrain.interfaces import Split


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's generator in one training batch; cheap, as every step calls it."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def generator(seed: int, split: Split, step: int, rank: int) -> np.random.Generator:
    """The random stream of one batch; equal arguments give equal batches on any machine."""
    # the validation set does not depend on the seed, so that runs can be compared
    key = (0, 1, step, rank) if split == "val" else (seed, 0, step, rank)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

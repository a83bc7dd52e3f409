"""Randomness as a pure function of where a batch is, so that nothing need be saved."""

import hashlib

import numpy as np

from xftrain.interfaces import Split


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's own random numbers in one training batch; cheap, as each step asks."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def generator(seed: int, split: Split, step: int, rank: int) -> np.random.Generator:
    """The random stream of one batch; equal arguments give equal batches on any machine."""
    # validation is the same set whatever the run's seed, so that runs can be compared
    key = (0, 1, step, rank) if split == "val" else (seed, 0, step, rank)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

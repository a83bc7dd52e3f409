"""Random seeds as a pure function of the batch index, so that no state needs to be saved."""

from dataclasses import dataclass

import numpy as np

from xftrain.interfaces import Split


def generator(seed: int, split: Split, step: int, rank: int) -> np.random.Generator:
    """The random stream of one batch; equal arguments give equal batches on any machine."""
    # the validation set does not depend on the seed, so that runs can be compared
    key = (0, 1, step, rank) if split == "val" else (seed, 0, step, rank)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class Shuffle:
    """The random orders of the epochs of a token stream.

    Attributes:
        seed: the run's seed.
        stream: a number of the stream; those of a mixture have orders of their own.
    """

    seed: int
    stream: int = 0

    def generator(self, epoch: int, window: int | None = None) -> np.random.Generator:
        """The random stream of an epoch, or of one window of its documents."""
        if window is None:
            return generator(self.seed, "train", epoch, self.stream)
        key = (self.seed, 0, epoch, self.stream, window)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class WindowShuffle(Shuffle):
    """The random orders within one window of a token stream.

    Attributes:
        place: number of the window.
    """

    place: int = 0

    def generator(self, epoch: int, window: int | None = None) -> np.random.Generator:
        """The random stream of an epoch, or of a part of its documents."""
        key = (self.seed, 0, epoch, self.stream, self.place, 0 if window is None else window + 1)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

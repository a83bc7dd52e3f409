"""Random numbers are those of earlier versions: their runs are resumed, and compared."""

from __future__ import annotations

import pytest

from xftrain.data._seeding import generator
from xftrain.interfaces import Split
from xftrain.train.dropout_seed import dropout_seed


@pytest.mark.parametrize(
    ("seed", "split", "step", "rank", "first"),
    [
        (0, "train", 0, 0, 259491006799949737),
        (7, "train", 3, 1, 15535088733291190958),
        (0, "val", 0, 0, 11203925021116910928),
        (0, "val", 3, 1, 10325083126588575022),
        (7, "val", 3, 1, 10325083126588575022),  # alike for every seed
    ],
)
def test_the_numbers_of_a_batch(seed: int, split: Split, step: int, rank: int, first: int) -> None:
    assert generator(seed, split, step, rank).bit_generator.random_raw() == first


def test_the_seed_of_dropout() -> None:
    assert dropout_seed(0, 0, 0) == 7765807450571155106
    assert dropout_seed(7, 3, 1) == 7854715285349225158

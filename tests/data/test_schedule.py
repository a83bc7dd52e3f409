"""The rows of a mixture are dealt out by weight, evenly and without state."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.data._schedule import MixtureSchedule

weights = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)


def shares(weights):
    total = sum(map(Fraction, weights))
    return [Fraction(weight) / total for weight in weights]


@given(weights, st.integers(0, 10**15))
def test_each_row_belongs_to_one_source(weights, row):
    schedule = MixtureSchedule(weights)
    before, after = schedule.counts(row), schedule.counts(row + 1)
    assert sum(before) == row
    assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(weights) - 1) + [
        1
    ]


@given(weights, st.integers(0, 10**15), st.integers(1, 10**6))
def test_every_window_has_the_share_of_each_source(weights, begin, num):
    schedule = MixtureSchedule(weights)
    counts = [schedule.counts(row) for row in (begin, begin + num)]
    for before, after, share in zip(*counts, shares(weights), strict=True):
        assert abs(before - share * begin) < 1.7
        assert abs(after - before - share * num) < (1.01 if len(weights) == 2 else 3.4)


@given(weights, st.integers(0, 10**12), st.data())
def test_weights_need_not_sum_to_one(weights, num, data):
    factor = data.draw(st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**20]))
    scaled = MixtureSchedule([weight * factor for weight in weights])
    assert scaled.counts(num) == MixtureSchedule(weights).counts(num)


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [1, 1, 1], [5, 3, 0.01]])
def test_over_ten_thousand_steps_the_shares_are_exact_to_a_tenth_of_a_percent(weights):
    counts = MixtureSchedule(weights).counts(10_000 * 8)
    for num, share in zip(counts, shares(weights), strict=True):
        assert abs(num / 80_000 - share) < 1e-3 * max(share, 0.03)


def test_sources_take_turns():
    schedule = MixtureSchedule([1, 2, 1])
    of_row = [
        [b - a for a, b in zip(schedule.counts(n), schedule.counts(n + 1), strict=True)].index(1)
        for n in range(8)
    ]
    assert of_row[:4] == of_row[4:] and of_row[:4].count(1) == 2
    assert max(map(len, "".join(map(str, of_row * 2)).replace("1", " ").split())) <= 2

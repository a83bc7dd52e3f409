"""Every pair of options is run and compared with the reference, or refused with its reason."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pytest
import torch

import xftrain
from tests.pairs import arrays, refusals
from tests.pairs.covering import Combination, Generator, pairs_of
from tests.pairs.factors import OWN_OPTIONS, Factor, Row, completed
from tests.pairs.runs import Outcome, Places, make_corpus, run_row
from tests.pairs.spy import Spy
from tests.pairs.values import VALUES
from xftrain.config.compose import compose
from xftrain.model.attn.naive import Naive

# The rows are about numbers: what torch, Lightning and others warn of is no difference, and a
# warning that is raised within torch's profiler leaves it half begun, which ends the process later.
pytestmark = pytest.mark.filterwarnings("ignore")

MOST_REFUSALS = 12  # of one row, where none is listed yet


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_pair_of_options_trains_as_the_reference:
        seed = int(metafunc.config.getoption("--pairs-seed"))
        is_whole = metafunc.config.getoption("--pairs") or "pairs" in metafunc.config.getoption(
            "markexpr"
        )
        rows = arrays.array(seed).rows if is_whole else []
        ids = [
            f"{n}-compiled" * (row["compile"] != "false") or str(n) for n, row in enumerate(rows)
        ]
        metafunc.parametrize("number", range(len(rows)), ids=ids)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("pairs")
    return Places(make_corpus(folder / "corpus"), folder / "cache")


def check(
    number: int, row: Row, places: Places, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Runs a row; of what is refused in it without being listed, the rest is run all the same."""
    factors = arrays.factors()
    new: dict[Combination, str] = {}
    outcome = Outcome()
    begin = time.monotonic()
    try:
        for attempt in range(MOST_REFUSALS):
            outcome = run_row(row, factors, places, tmp_path / str(attempt))
            if outcome.refusal is None:
                break
            if not any(found <= row.items() for found in new):
                refusal = Refusals(row, new, places, tmp_path / f"refused{attempt}")
                combination, reason = refusals.smallest(row, factors, refusal)
                new[combination] = reason
            row = without(row, new, factors)
    except Exception as error:
        outcome.differences.append(f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    finally:
        note = {
            "number": number,
            "row": row,
            "ran": outcome.refusal is None and bool(outcome.compared),
            "refusals": refusals.as_lines(new),
            "differences": outcome.differences,
            "seconds": round(time.monotonic() - begin),
            "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        request.node.user_properties.append(("pairs", json.dumps(note)))
    typed = " ".join(places.typed(row, factors))
    assert not outcome.differences, f"{outcome.differences} of {typed}"
    assert outcome.refusal is None, f"{outcome.refusal} of {typed}"
    # where none is listed yet, as on a new kind of device, the table at the end lists them
    assert not new or not arrays.refused(), f"not listed: {refusals.as_lines(new)}"


def without(row: Row, found: Mapping[Combination, str], factors: list[Factor]) -> Row:
    """The row with the defaults in place of levels that are refused together.

    A default may be refused with what is left, by a combination that was found beside it.
    """
    for _ in range(MOST_REFUSALS):
        names = {name for one in found if one <= row.items() for name, _ in one}
        if not names:
            break
        kept = {name: level for name, level in row.items() if name not in names}
        row = completed(kept, factors)
    return row


class Refusals:
    """Why a row is refused, for `smallest`; by training it only if this row is refused so late."""

    def __init__(
        self, row: Row, found: Mapping[Combination, str], places: Places, folder: Path
    ) -> None:
        self.found, self.places, self.folder, self.number = found, places, folder, 0
        self.trains = False
        self.trains = self(row) is None

    def __call__(self, row: Row) -> str | None:
        if any(combination <= row.items() for combination in self.found):
            return None
        self.number += 1
        place, factors = self.folder / str(self.number), arrays.factors()
        if self.trains:
            return run_row(row, factors, self.places, place).refusal
        return refusals.refusal_before_training(row, factors, self.places, place)


@pytest.mark.pairs_sample
@pytest.mark.parametrize("number", range(arrays.SAMPLE))
def test_a_sample_of_pairs_trains_as_the_reference(number, places, tmp_path, request):
    check(number, arrays.sample()[number], places, tmp_path, request)


@pytest.mark.pairs
def test_a_pair_of_options_trains_as_the_reference(number, places, tmp_path, request):
    seed = int(request.config.getoption("--pairs-seed"))
    check(number, arrays.array(seed).rows[number], places, tmp_path, request)


def test_what_is_listed_as_refused_is_refused_for_that_reason(places, tmp_path):
    factors = arrays.factors()
    for number, (combination, reason) in enumerate(arrays.refused().items()):
        row = refusals.row_with(combination, factors)
        said = refusals.refusal_before_training(row, factors, places, tmp_path / str(number))
        assert said == reason, combination


def test_every_pair_is_in_a_row():
    factors = [
        Factor("a", ("0", "1", "2"), "a"),
        Factor("b", ("0", "1"), "b"),
        Factor("b[1].c", ("0", "1"), "c", ("b", "1")),
        Factor("d", ("0", "1", "2", "3"), "d"),
    ]
    refused = frozenset([("a", "1"), ("d", "2")])
    made = Generator(factors, [refused], {}).array()
    formed = set().union(*map(pairs_of, made.rows))
    levels = [(one.name, level) for one in factors for level in one.levels]
    wanted = {
        tuple(sorted(pair))
        for pair in combinations(levels, 2)
        if pair[0][0] != pair[1][0] and frozenset(pair) != refused
    } - {(("b", "0"), ("b[1].c", level)) for level in "01"}
    assert formed == wanted and made.num_pairs == len(wanted) and not made.unreachable
    assert all(("b[1].c" in row) == (row["b"] == "1") for row in made.rows)


def test_a_default_that_is_refused_with_what_is_left_goes_too():
    # compile=cudagraphs went, and its default was refused with the budget that was left
    graphs = frozenset([("compile", "cudagraphs"), ("trainer.accelerator", "cpu")])
    budget = frozenset([("compile", "false"), ("model.activation_budget", "0.5")])
    factors = arrays.factors()
    row = completed(dict(graphs | {("model.activation_budget", "0.5")}), factors)
    left = without(row, dict.fromkeys([budget, graphs], "a reason"), factors)
    assert left == completed({}, factors)


def test_every_value_that_is_given_by_hand_is_of_an_option_that_there_is():
    names = {factor.name for factor in arrays.factors()}
    assert set(VALUES) <= names, "of the table in tests/pairs/values.py"


def test_a_kernel_that_is_wrong_by_a_hundredth_is_seen(places, tmp_path, monkeypatch):
    call = Naive.__call__
    monkeypatch.setattr(Naive, "__call__", lambda *args: call(*args) * 1.01)
    # on the CPU, whose float32 is compared most strictly
    levels = {"model/attn": "naive", "trainer.accelerator": "cpu"}
    row = completed(levels, arrays.factors())
    outcome = run_row(row, arrays.factors(), places, tmp_path)
    assert {said.partition(":")[0] for said in outcome.differences} >= {"losses", "moments"}


def test_gradients_of_other_numbers_dropped_than_in_the_forward_pass_are_seen(
    places, tmp_path, monkeypatch
):
    drop = torch.nn.functional.dropout

    def other(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        # the value of one draw with the gradient of another
        return drop(x.detach(), p, training) + drop(x, p, training) - drop(x.detach(), p, training)

    cfg = compose(
        *places.typed(completed({"model.dropout": "0.2"}, arrays.factors()), arrays.factors()),
        "++callbacks.spy={_target_:tests.pairs.spy.Spy,probes:true}",
        config_dir=OWN_OPTIONS,
    )
    monkeypatch.setattr(torch.nn.functional, "dropout", other)
    xftrain.run(cfg, tmp_path)
    by_gradient, by_differences = Spy.last.slope
    assert abs(by_differences - by_gradient) > 0.02 * by_gradient

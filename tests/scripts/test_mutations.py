"""The mutations of scripts/mutate.py change what they say, where they say it."""

from __future__ import annotations

import builtins

import pytest

from scripts.mutations import instrumented, mutated, mutations

SOURCE = '''"""Of 3 sums."""

from __future__ import annotations

LIMIT: int = 3


def total(values: list[int], most: int = 7) -> int:
    """At most `most`."""
    found = 0
    for value in values:
        if value < LIMIT and (
            value != 1
        ):
            found += value
    return min(found, most)
'''


def values_of(source: str) -> list[int]:
    namespace: dict[str, object] = {}
    exec(compile(source, "source", "exec"), namespace)
    total = namespace["total"]
    return [total([0, 1, 2, 3]), total([2, 2, 2, 2])]  # type: ignore[operator]


def test_each_mutation_is_one_change_and_leaves_the_number_of_lines():
    found = mutations(SOURCE)
    for mutation in found:
        changed = mutated(SOURCE, mutation)
        assert changed != SOURCE and changed.count("\n") == SOURCE.count("\n")
    said = {mutation.description for mutation in found}
    assert {"`value < LIMIT` -> `value <= LIMIT`", "`3` -> `4`", "`7` -> `6`"} <= said
    assert "`min(found, most)` -> `max(found, most)`" in said
    assert not any("Of" in words or "list" in words for words in said)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("`found += value` -> `pass`", [0, 0]),
        ("`value < LIMIT` -> `value > LIMIT`", [0, 0]),
        ("`value != 1` -> `value == 1`", [1, 0]),
        ("`3` -> `4`", [5, 7]),
        ("`return min(found, most)` -> `return None`", [None, None]),
    ],
)
def test_a_mutation_does_what_it_says(said, expected):
    assert values_of(SOURCE) == [2, 7]
    (mutation,) = [one for one in mutations(SOURCE) if one.description == said]
    assert values_of(mutated(SOURCE, mutation)) == expected


def test_marks_tell_the_statements_that_a_test_reaches(monkeypatch):
    reached: set[tuple[str, int]] = set()
    monkeypatch.setattr(
        builtins, "reached", lambda file, line: reached.add((file, line)), raising=False
    )
    assert values_of(instrumented(SOURCE, "source.py")) == [2, 7]
    lines = {line for _, line in reached}
    assert lines == {10, 11, 12, 15, 16}
    of_functions = {one.statement for one in mutations(SOURCE)} - {0}
    assert of_functions <= lines

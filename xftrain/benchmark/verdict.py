"""The verdict of a benchmark: the fastest and the smallest backend, and the override to type.

For each bias and head grouping, the verdict uses the measurements that are closest to the run:

- the training steps of `train_sweep`, which have the run's own shape, if there are any;
- otherwise the attention calls of `attention_sweep`, at the longest length at which all backends
  ran, without those that ran at no length.

Two backends are tied if the median of one is between the 10th and 90th percentiles of the other, or
if their memory differs by less than 2 % or 1 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xftrain.benchmark import tables
from xftrain.benchmark.cells import Row
from xftrain.config import registry

TITLE = "Which attention to use"
BENCHMARKS = ("train_sweep", "attention_sweep", "parity")  # the benchmarks whose rows are used
_TIE_SHARE, _TIE_MIB = 0.02, 1.0  # smaller differences in memory are ties


@dataclass(frozen=True)
class Case:
    """One bias and head grouping, and the rows in which its backends are compared.

    Attributes:
        bias: the bias.
        heads: the head grouping.
        measured: description of the measurement.
        rows: a row for each backend, with any status.
        others: rows of the same bias and grouping with other settings, for notes on failures.
        speed: the name of the field with time or speed.
        memory: the name of the field with memory.
    """

    bias: str
    heads: str
    measured: str
    rows: Sequence[Row]
    others: Sequence[Row]
    speed: str
    memory: str

    @property
    def name(self) -> str:
        """The name of the case in a sentence."""
        return f"{self.bias} {self.heads}"


def verdict(rows: Sequence[Row]) -> str:
    """Renders the table of winners and its limitations in Markdown; empty without comparisons.

    Args:
        rows: the rows of all benchmarks of a run.
    """
    cases = _cases(rows)
    if not cases:
        return ""
    wrong = {_subject(r) for r in rows if r["sweep"] == "parity" and _ran(r) and r.get("faults")}
    lines = []
    for case in cases:
        ran = [row for row in case.rows if _ran(row) and _subject(row) not in wrong]
        fastest = _best(ran, case.speed, _are_times_tied)
        smallest = _best(ran, case.memory, _is_memory_tied)
        lines.append(
            [
                case.bias,
                case.heads,
                _winners(fastest, case.speed, is_alone=len(ran) == 1),
                _winners(smallest, case.memory, is_alone=len(ran) == 1),
                _advice(fastest, smallest, case.memory),
                case.measured,
            ]
        )
    header = ["bias", "heads", "fastest", "smallest", "override", "measured"]
    return f"{tables.table(header, lines)}\n\n{_notes(cases, wrong)}"


def _cases(rows: Sequence[Row]) -> list[Case]:
    trained = [row for row in rows if row["sweep"] == "train_sweep"]
    called = [r for r in rows if r["sweep"] == "attention_sweep" and "longest_limit" not in r]
    made = []
    places: dict[tuple[str, str], tuple[list[Row], list[Row]]] = {}
    for kind, several in enumerate((trained, called)):
        for row in several:
            places.setdefault(_bias_and_heads(row), ([], []))[kind].append(row)
    for own, calls in places.values():
        is_trained = any(map(_ran, own)) or not calls
        made.append(_training_case(own, calls) if is_trained else _call_case(calls))
    return made


def _training_case(rows: Sequence[Row], calls: Sequence[Row]) -> Case:
    """The case of training steps, with the feed-forward of the first row that ran."""
    first = next(filter(_ran, rows), rows[0])
    own = [row for row in rows if (row["ffn"], row["seq"]) == (first["ffn"], first["seq"])]
    measured = f"training, seq {first['seq']:,}, {first['ffn']}, {first['dtype']}"
    return Case(*_bias_and_heads(first), measured, own, calls, "tokens_per_s", "peak_mib")


def _call_case(rows: Sequence[Row]) -> Case:
    """The case of attention calls, at the longest common length."""
    lengths: dict[str, set[int]] = {}
    for row in filter(_ran, rows):
        lengths.setdefault(row["backend"], set()).add(row["M"])
    common = set.intersection(*lengths.values()) if lengths else set()
    length = max(common or set().union(*lengths.values()) or {row["M"] for row in rows})
    own = [row for row in rows if row["M"] == length]
    measured = f"call, M = {length:,}, {own[0]['dtype']}"
    memory = "extra_mib" if all(_figure(r, "extra_mib") for r in own if _ran(r)) else "peak_mib"
    return Case(*_bias_and_heads(rows[0]), measured, own, rows, "ms", memory)


def _best(rows: Sequence[Row], field: str, are_tied: Callable[[Row, Row, str], bool]) -> list[Row]:
    """The best row, followed by the rows that are tied with it."""
    known = [row for row in rows if _figure(row, field)]
    known.sort(key=lambda row: row[field], reverse=field == "tokens_per_s")
    return [row for row in known if row is known[0] or are_tied(known[0], row, field)]


def _are_times_tied(best: Row, other: Row, field: str) -> bool:
    def is_within(row: Row, spread_of: Row) -> bool:
        low, high = (_figure(spread_of, f"{field}_{end}") for end in ("p10", "p90"))
        return low is not None and high is not None and bool(low <= row[field] <= high)

    return is_within(best, other) or is_within(other, best)


def _is_memory_tied(best: Row, other: Row, field: str) -> bool:
    return bool(other[field] - best[field] <= max(_TIE_MIB, _TIE_SHARE * best[field]))


def _winners(rows: Sequence[Row], field: str, *, is_alone: bool) -> str:
    if not rows:
        return "-"
    unit = {"tokens_per_s": "tokens/s", "ms": "ms"}.get(field, "MiB")
    tied = ", ".join(str(row["backend"]) for row in rows[1:])
    text = f"{rows[0]['backend']} {tables.figure(rows[0][field])} {unit}"
    return f"{text}, tied with {tied}" if tied else f"{text}{', the only one' * is_alone}"


def _advice(fastest: Sequence[Row], smallest: Sequence[Row], memory: str) -> str:
    """The override of the fastest backend or, among ties, of the one with the least memory."""
    if not fastest:
        return "-"
    chosen = min(fastest, key=lambda row: _figure(row, memory) or float("inf"))
    text = _override(chosen)
    if smallest and chosen not in smallest:
        text += f", for memory {_override(smallest[0])}"
    return text


def _override(row: Row) -> str:
    """The override for a backend, whose name may be followed by its fields."""
    name, *fields = str(row["backend"]).split(" ")
    if name not in registry.option_names("model/attn"):
        return f"your own {name}"
    return f"`{' '.join([f'model.attn={name}', *(f'model.attn.{field}' for field in fields)])}`"


def _notes(cases: Sequence[Case], wrong: set[tuple[str, str, str]]) -> str:
    """Lists every backend that was not compared, with the reason."""
    found: dict[str, list[str]] = {}

    def add_note(text: str, backend: str, case: Case) -> None:
        places = found.setdefault(f"{backend} {text}", [])
        if case.name not in places:
            places.append(case.name)

    for case in cases:
        compared = {row["backend"] for row in case.rows if _ran(row)}
        by_backend: dict[str, list[Row]] = {}
        for row in [*case.rows, *case.others]:
            by_backend.setdefault(row["backend"], []).append(row)
        for backend, own in by_backend.items():
            if _subject(own[0]) in wrong:
                add_note("gave wrong results (see Parity) and is not chosen", backend, case)
            lost = [row for row in own if not _ran(row)]
            for status in dict.fromkeys(row["status"] for row in lost):
                first = min((r for r in lost if r["status"] == status), key=_length)
                at_length = f" from M = {first['M']:,} on" if any(map(_ran, own)) else ""
                reason = f" ({first['reason']})" if status != "oom" and first.get("reason") else ""
                outcome = "ran out of memory" if status == "oom" else tables.STATUS[status]
                outcome = f"was {outcome}" if status == "unsupported" else outcome
                add_note(f"{outcome}{at_length if 'M' in first else ''}{reason}", backend, case)
            if backend not in compared and any(map(_ran, own)):
                add_note("was measured in single calls only and is not compared", backend, case)
    lines = [f"- {text}: {', '.join(places)}" for text, places in found.items()]
    lines.append(
        "- tied: the median of one is between the 10th and 90th percentiles of the other, or the "
        f"memory differs by less than {_TIE_SHARE:.0%} or {_TIE_MIB:g} MiB; the override is that "
        "of the smaller one"
    )
    return "\n".join(lines)


def _subject(row: Row) -> tuple[str, str, str]:
    """Backend, bias and heads; the bias without fields, since parity may check another window."""
    bias, heads = _bias_and_heads(row)
    return str(row["backend"]), bias.partition(" ")[0], heads


def _bias_and_heads(row: Row) -> tuple[str, str]:
    return str(row["bias"]), str(row["heads"])


def _length(row: Row) -> int:
    return int(row.get("M", 0))


def _ran(row: Row) -> bool:
    return bool(row["status"] == "ok")


def _figure(row: Row, field: str) -> float | None:
    """A figure of a row; None if it is missing or text."""
    value = row.get(field)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None

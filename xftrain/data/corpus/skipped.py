"""Counts the skipped files and records of a corpus by reason, with the names of the first few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from xftrain.data.corpus.formats import MAX_WINDOW_MIB
from xftrain.utils.printable import one_line

_NUM_NAMED = 3  # recorded names per reason
# Reasons for which a file or record is skipped, other than an adjective of a file.
WITHOUT_LINES = "JSON without lines"
WITHOUT_KEY = "without the key"
LARGE_WINDOW = "large window"
WITHOUT_CONVERSATION = "without conversations"
WITHOUT_RECORDS = "without records"
WITHOUT_TURNS = "record without a conversation"
_NOUNS = {
    "outside": ("link out of the folder", "links out of the folder"),
    "run folder": ("run folder", "run folders"),
    "run output": ("output file of this command", "output files of this command"),
    "indexed dataset": ("dataset with indices", "datasets with indices"),
    "outside dataset": (
        "file name that leads out of its dataset",
        "file names that lead out of their dataset",
    ),
    WITHOUT_LINES: (
        "JSON file with one value instead of one a line",
        "JSON files with one value instead of one a line",
    ),
    WITHOUT_KEY: (
        "file without the column data.text_key",
        "files without the column data.text_key",
    ),
    LARGE_WINDOW: (
        f"file compressed with a window of more than {MAX_WINDOW_MIB} MiB",
        f"files compressed with a window of more than {MAX_WINDOW_MIB} MiB",
    ),
    "record without text": ("record without text", "records without text"),
    "record whose text is no text": (
        "record whose text is no valid Unicode string",
        "records whose text is no valid Unicode string",
    ),
    "record that is too long": ("record that is too long", "records that are too long"),
    "record that is no JSON": ("line that is no JSON", "lines that are no JSON"),
    "record that is no JSON mapping": (
        "line that is no JSON mapping",
        "lines that are no JSON mappings",
    ),
    "row that is no CSV": ("row that is no CSV", "rows that are no CSV"),
    "empty record": ("empty record", "empty records"),
    WITHOUT_RECORDS: ("file without records", "files without records"),
    WITHOUT_CONVERSATION: (
        "file without the columns of conversations",
        "files without the columns of conversations",
    ),
    WITHOUT_TURNS: ("record without a conversation", "records without a conversation"),
    "record whose prompt or completion is no text": (
        "record whose prompt or completion is no string",
        "records whose prompt or completion is no string",
    ),
    "record whose messages are no messages": (
        "record whose messages are no list of mappings",
        "records whose messages are no lists of mappings",
    ),
    "message whose content is no text": (
        "record with a message whose content is no string",
        "records with a message whose content is no string",
    ),
    "message of an unknown role": (
        "record with a message of an unknown role",
        "records with a message of an unknown role",
    ),
    "call of a tool": ("record with a call of a tool", "records with a call of a tool"),
    "empty completion": ("record with an empty completion", "records with an empty completion"),
    "empty message": ("record with an empty message", "records with an empty message"),
    "conversation without the assistant": (
        "record without a message of the assistant",
        "records without a message of the assistant",
    ),
}


class Skipped(Counter[str]):
    """The number of files, folders or records by the reason why they were skipped.

    Args:
        counts: the numbers so far.
        names: the names so far.

    Attributes:
        names: the first few of each reason.
    """

    def __init__(
        self,
        counts: Mapping[str, int] | None = None,
        names: Mapping[str, list[str]] | None = None,
    ) -> None:
        super().__init__(counts or {})
        self.names = dict(names or {})

    def __reduce__(self) -> tuple[type[Skipped], tuple[dict[str, int], dict[str, list[str]]]]:
        return Skipped, (dict(self), self.names)  # that of a Counter leaves out the names

    def add(self, reason: str, name: str) -> None:
        """Counts one file, folder or record."""
        self[reason] += 1
        named = self.names.setdefault(reason, [])
        if len(named) < _NUM_NAMED:
            named.append(name)

    def add_all(self, other: Skipped) -> None:
        """Counts what another one has counted."""
        self.update(other)
        for reason, names in other.names.items():
            named = self.names.setdefault(reason, [])
            named += names[: _NUM_NAMED - len(named)]

    def __str__(self) -> str:
        """A text such as `312 binary files, 1 empty file : a.png, b.png, c.png, ..., notes.txt`."""
        reasons = [reason for reason in sorted(self) if self[reason]]
        if not reasons:
            return "no files"
        counts = [f"{self[r]:,} {_noun(r, self[r])}" for r in reasons]
        named = [
            ", ".join(map(one_line, self.names[r])) + ", ..." * (self[r] > len(self.names[r]))
            for r in reasons
            if self.names.get(r)
        ]
        return ", ".join(counts) + (f": {', '.join(named)}" if named else "")


def _noun(reason: str, number: int) -> str:
    one, many = _NOUNS.get(reason, (f"{reason} file", f"{reason} files"))
    return one if number == 1 else many

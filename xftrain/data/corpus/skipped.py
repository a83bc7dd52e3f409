"""Counts the skipped files of a corpus by reason, with the names of the first few."""

from __future__ import annotations

from collections import Counter

from xftrain.utils.printable import one_line

_NUM_NAMED = 3  # recorded names per reason


class Skipped(Counter[str]):
    """The number of files or folders by the reason why they were skipped.

    Attributes:
        names: the first few of each reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one file or folder."""
        self[reason] += 1
        named = self.names.setdefault(reason, [])
        if len(named) < _NUM_NAMED:
            named.append(name)

    def __str__(self) -> str:
        """A text such as `312 binary files, 1 empty file : a.png, b.png, c.png, ..., notes.txt`."""
        reasons = [reason for reason in sorted(self) if self[reason]]
        if not reasons:
            return "no files"
        counts = [f"{self[r]:,} {_noun(r, 's' * (self[r] > 1))}" for r in reasons]
        named = [
            ", ".join(map(one_line, self.names[r])) + ", ..." * (self[r] > len(self.names[r]))
            for r in reasons
            if self.names.get(r)
        ]
        return ", ".join(counts) + (f": {', '.join(named)}" if named else "")


def _noun(reason: str, s: str) -> str:
    nouns = {
        "outside": f"link{s} out of the folder",
        "run folder": f"run folder{s}",
        "run output": f"output file{s} of this command",
    }
    return nouns.get(reason, f"{reason} file{s}")

"""What a run trains on: documents, tokens, bytes per token, copies, and how long documents are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from xftrain.errors import ConfigError
from xftrain.interfaces import DataSource, SourceFacts, SplitContent
from xftrain.train.log_text import log_text
from xftrain.utils.markdown import table
from xftrain.utils.printable import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_NAME_CHARACTERS = 40
_ZERO = 0.5  # where a logarithmic axis has the length 0
_UNKNOWN = "unknown"
_HEADER = (
    *("source", "split", "documents", "bytes", "tokens"),
    *("bytes per token", "tokens per document"),
)


class DataReport:
    """The report of a data source.

    Args:
        data: the data source; a user's class may lack facts.

    Raises:
        ConfigError: a user's class breaks the protocol.
    """

    def __init__(self, data: DataSource) -> None:
        self._name = type(data).__name__
        facts: Any = getattr(data, "facts", None)
        self.facts: list[SourceFacts] | None = None
        if facts is not None:
            self.facts = facts() if callable(facts) else None
            if not isinstance(self.facts, list) or not all(
                isinstance(source, SourceFacts) for source in self.facts
            ):
                raise ConfigError(
                    f"data: facts() of {self._name} must be a method that returns a list of "
                    "xftrain.interfaces.SourceFacts (docs/extending.md)."
                )

    @property
    def figures(self) -> dict[str, int | float]:
        """The figures that are known, by name, over all sources."""
        if not self.facts:
            return {}
        train, val = (_total(getattr(s, split) for s in self.facts) for split in ("train", "val"))
        figures = {
            "documents": train.num_documents,
            "tokens": train.num_tokens,
            "bytes": train.num_bytes,
            "bytes_per_token": _ratio(train.num_bytes, train.num_tokens),
            "val_documents": val.num_documents,
            "val_tokens": val.num_tokens,
            "duplicate_share": self._duplicate_share(train, val),
        }
        return {name: value for name, value in figures.items() if value is not None}

    def line(self) -> str:
        """The report in one line."""
        if self.facts is None:
            return (
                f"{self._name} has no facts(), so its numbers of documents, tokens and copies are "
                "unknown"
            )
        if not self.facts:
            return f"{self._name} has no documents: each batch is made when it is needed"
        train, val = (_total(getattr(s, split) for s in self.facts) for split in ("train", "val"))
        if all(source.train == source.val == SplitContent() for source in self.facts):
            return f"{self._name} does not know its numbers of documents and tokens yet"
        share = self._duplicate_share(train, val)
        duplicates = _UNKNOWN if share is None else f"{share:.1%}"
        return (
            f"{_count(train.num_documents)} documents to train on, {_count(train.num_tokens)} "
            f"tokens, {_per(train.num_bytes, train.num_tokens)} bytes per token, "
            f"{_per(train.num_tokens, train.num_documents)} tokens per document; "
            f"{_count(val.num_documents)} held out, {_count(val.num_tokens)} tokens; share of "
            f"duplicates: {duplicates}"
        )

    def table(self) -> str:
        """A table of all sources and splits; empty if nothing is known."""
        rows = [
            [
                shortened(one_line(source.name), _NAME_CHARACTERS) or "-",
                split,
                *map(_count, (content.num_documents, content.num_bytes, content.num_tokens)),
                _per(content.num_bytes, content.num_tokens),
                _per(content.num_tokens, content.num_documents),
            ]
            for source in self.facts or ()
            for split, content in (("train", source.train), ("val", source.val))
        ]
        return table(_HEADER, rows, figures=(_UNKNOWN,)) if rows else ""

    def picture(self) -> Figure | None:
        """The histogram of the lengths of documents; None if there is none to draw."""
        sources = [source for source in self.facts or () if any(source.train.length_counts)]
        return _histogram(sources) if sources else None

    def log(self, loggers: Sequence[Logger]) -> None:
        """Sends text and picture to the loggers that can show them."""
        log_text(loggers, "data", f"{self.line()}\n\n{self.table()}".strip())
        boards = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
        if boards and (figure := self.picture()) is not None:
            from xftrain.utils.plot_style import pixels

            image = pixels(figure)
            for board in boards:
                board.experiment.add_image("data/document_lengths", image, 0, dataformats="HWC")

    def _duplicate_share(self, train: SplitContent, val: SplitContent) -> float | None:
        """The copies among all documents; None if it is unknown for one source."""
        num_duplicates = _sum(source.num_duplicates for source in self.facts or ())
        return _ratio(num_duplicates, _sum((train.num_documents, val.num_documents)))


def _histogram(sources: Sequence[SourceFacts]) -> Figure:
    """Draws the share of documents by their length, a line for each source."""
    from matplotlib.ticker import LogLocator, PercentFormatter

    from xftrain.utils.plot_style import COLORS, new_figure, style_axis, use_log_ticks

    figure = new_figure(7, 3.5)
    axis = figure.add_subplot()
    style_axis(axis, "lengths of the documents to train on")
    for number, source in enumerate(sources):
        counts = source.train.length_counts
        num_documents = sum(counts)
        edges = [max(edge, _ZERO) for edge in source.train.length_edges]
        name = shortened(one_line(source.name), _NAME_CHARACTERS).replace("$", r"\$")
        axis.stairs(
            [count / num_documents for count in counts],
            edges,
            color=COLORS[number % len(COLORS)],
            fill=len(sources) == 1,
            label=name or None,
        )
    axis.set_xscale("log")
    lengths = [edge for source in sources for edge in _edges_used(source.train)]
    axis.set_xlim(min(lengths) / 1.5, max(lengths) * 1.5)
    use_log_ticks(axis.xaxis)
    if max(lengths) > 1000 * min(lengths):  # otherwise labels overlap
        axis.xaxis.set_major_locator(LogLocator())
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axis.set_xlabel("tokens of a document", fontsize=9)
    axis.set_ylabel("documents", fontsize=9)
    if len(sources) > 1:
        axis.legend(frameon=False, fontsize=8)
    return figure


def _edges_used(content: SplitContent) -> list[float]:
    """The edges of the bins that hold documents."""
    bins = zip(pairwise(content.length_edges), content.length_counts, strict=True)
    return [max(edge, _ZERO) for edges, count in bins if count for edge in edges]


def _total(contents: Any) -> SplitContent:
    found = list(contents)
    return SplitContent(
        num_documents=_sum(content.num_documents for content in found),
        num_tokens=_sum(content.num_tokens for content in found),
        num_bytes=_sum(content.num_bytes for content in found),
    )


def _sum(values: Any) -> int | None:
    found = list(values)
    return None if None in found else sum(found)


def _ratio(value: int | None, over: int | None) -> float | None:
    return value / over if value is not None and over else None


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _per(value: int | None, over: int | None) -> str:
    ratio = _ratio(value, over)
    return _UNKNOWN if ratio is None else f"{ratio:,.2f}" if ratio < 100 else f"{ratio:,.0f}"

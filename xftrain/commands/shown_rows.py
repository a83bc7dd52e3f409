"""Shows rows of batches with the boundaries of their documents, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from xftrain.interfaces import IGNORED_LABEL, Batch, DataSource, load_batch
from xftrain.utils import redaction
from xftrain.utils.printable import one_line

WIDTH = 96  # characters of a line
_MAX_DOCUMENTS = 12  # of a row, shown
_DECODED_TOKENS = 400  # of the beginning and the end of a document; more would not fit a line


def shown_rows(data: DataSource, num_rows: int = 3) -> str:
    """The first training rows, a line for each document or part of one.

    Args:
        data: the data source.
        num_rows: number of rows.
    """
    lines: list[str] = []
    number = step = 0
    while number < num_rows:
        batch = load_batch(data, "train", step)
        step += 1
        for row in range(min(batch.shape_BM[0], num_rows - number)):
            number += 1
            lines += [*_row(data, batch, row, f"row {number} of {num_rows}"), ""]
    return redaction.hidden("\n".join(lines[:-1]))


def _row(data: DataSource, batch: Batch, row: int, title: str) -> Iterator[str]:
    tokens, labels = (x[row].cpu() for x in (batch.tokens_BM, batch.labels_BM))
    separator = getattr(getattr(data, "vocabulary", None), "separator", None)
    lengths = batch.seqlens or _lengths(tokens, labels, separator)
    packed = "packed" if batch.seqlens else "not packed"
    num_labels = int((labels != IGNORED_LABEL).sum())
    labeled = "" if num_labels == tokens.numel() else f", {num_labels:,} of them with a label"
    yield (
        f"{title}: {tokens.numel():,} tokens{labeled}, {packed}; "
        f"documents or parts: {len(lengths):,}"
    )
    digits = len(f"{max(lengths):,}")
    parts = zip(tokens.split(lengths), labels.split(lengths), strict=True)
    for number, (own, own_labels) in enumerate(parts):
        if number == _MAX_DOCUMENTS:
            yield f"  {'':{digits}} | and {len(lengths) - number:,} more"
            return
        begin = f"  {own.numel():{digits},} | "
        yield begin + _text(data, own, own_labels, separator, WIDTH - len(begin))


def _lengths(tokens: torch.Tensor, labels: torch.Tensor, separator: int | None) -> list[int]:
    """The lengths of the parts that separators begin; the padding at the end is one part."""
    if separator is None:
        return [tokens.numel()]
    is_text = (tokens != separator) | (labels != IGNORED_LABEL)
    end = int(torch.nonzero(is_text).max()) + 1 if bool(is_text.any()) else 0
    starts = torch.nonzero(tokens[:end] == separator).flatten().tolist()
    places = sorted({0, *starts, end, tokens.numel()})
    return [end - start for start, end in pairwise(places)]


def _text(
    data: DataSource,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    separator: int | None,
    width: int,
) -> str:
    """The beginning and the end of a document, with three dots where it is cut."""
    is_masked = bool((labels == IGNORED_LABEL).all())
    if is_masked and (separator is None or bool((tokens == separator).all())):
        return "(padding)"
    before = after = ""
    if separator is not None:
        if int(tokens[0]) == separator:
            tokens = tokens[1:]
        else:
            before = "(continued) "
        # the end of a prompt has no label that would say what follows
        is_whole = int(labels[-1]) in (separator, IGNORED_LABEL)
        after = "" if is_whole else " (to be continued)"
    room = width - len(before) - len(after)
    if tokens.numel() <= 2 * _DECODED_TOKENS:
        text = one_line(data.decode(tokens.tolist()))
        if len(text) <= room:
            return before + text + after
        first, last = text, text
    else:
        first = one_line(data.decode(tokens[:_DECODED_TOKENS].tolist()))
        last = one_line(data.decode(tokens[-_DECODED_TOKENS:].tolist()))
    half = (room - 5) // 2
    return f"{before}{first[:half]} ... {last[-half:]}{after}"

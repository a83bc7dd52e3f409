"""What a corpus has told about its faults while it was read: errors, warnings and log lines."""

from __future__ import annotations

import logging

from xftrain.data.corpus.selection import selection_of
from xftrain.data.corpus.skipped import WITHOUT_LINES
from xftrain.data.tokens.documents import DocumentReader
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line, shortened

log = logging.getLogger(__name__)


def check_documents(reader: DocumentReader) -> None:
    """Checks that there are documents, and that records have the key that is configured.

    A corpus of text with a table that is no text, as a folder of source code has, only warns.

    Raises:
        ConfigError: there are none, or the text of most files is under another key.
    """
    corpus, skipped = reader.corpus, reader.skipped
    selection = selection_of(corpus.text_key)
    num_without = skipped[selection.without_columns] + skipped[selection.without_value]
    has_key = reader.num_records or any(skipped[reason] for reason in selection.invalid)
    if num_without and not has_key:
        message = (
            f"{selection.rule()}, which no record has; the first record has the keys "
            f"{shortened(', '.join(map(one_line, reader.keys)), 500) or 'of an empty record'}."
        )
        if _bytes_of_records(reader) >= sum(c.bytes for c in reader.counts.values()):
            raise ConfigError(message)
        log.warning("%s", message)
    if not any(counts.documents for counts in reader.counts.values()):
        _advise_lines(reader)
        raise ConfigError(f"data.path must hold {selection.remedy.format(skipped)}")


def _bytes_of_records(reader: DocumentReader) -> int:
    return sum(text.size for text in reader.corpus.files if text.has_records)


def log_record_faults(reader: DocumentReader) -> None:
    """Names the first records and files that were skipped while reading."""
    if reader.skipped.total():
        log.warning("data.path: skipped %s", reader.skipped)
    _advise_lines(reader)
    if reader.duplicates.is_full:
        log.info("data.path: copies were counted among the first documents only, as memory allows")


def _advise_lines(reader: DocumentReader) -> None:
    """Tells how a JSON file that is one list becomes records."""
    if reader.skipped[WITHOUT_LINES]:
        log.warning(
            "data.path: a JSON file must hold one record a line; for a file that holds a list of "
            "records, `jq -c '.[]' records.json > records.jsonl` writes these lines"
        )

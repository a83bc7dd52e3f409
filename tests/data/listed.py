"""The listing of one path, for tests."""

from __future__ import annotations

from pathlib import Path

from xftrain.data.corpus.files import SourceFile
from xftrain.data.corpus.listing import Listing
from xftrain.data.corpus.skipped import Skipped


def list_files(
    root: Path, *, leave_out: Path, follow_links: bool = False
) -> tuple[list[SourceFile], Skipped]:
    """The files of a path, and the skipped files by reason."""
    listing = Listing(leave_out=leave_out, follow_links=follow_links)
    return listing.files_of([root]), listing.skipped

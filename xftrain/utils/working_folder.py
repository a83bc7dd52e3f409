"""Hides the working folder, which may be untrusted, from libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager


@contextmanager
def hidden_working_folder(variables: Sequence[str]) -> Iterator[None]:
    """Makes `/`, whose files are the system's, the working folder for the duration of a block.

    Args:
        variables: environment variables that name files; a relative path in one is resolved
            against the user's working folder first.
    """
    before = {name: os.environ[name] for name in variables if os.environ.get(name)}
    os.environ.update({name: _absolute(path) for name, path in before.items()})
    try:
        with chdir("/"):
            yield
    finally:
        os.environ.update(before)


def _absolute(path: str) -> str:
    return path if path.startswith("~") else os.path.abspath(path)

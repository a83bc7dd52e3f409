"""Has others run where they do not see the working folder, whose files may be anyone's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager


@contextmanager
def out_of_sight(variables: Sequence[str]) -> Iterator[None]:
    """The root folder is the working folder meanwhile; a file there is the system's.

    Args:
        variables: of the environment, that name files; a relative path in one is the user's, from
            the working folder.
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

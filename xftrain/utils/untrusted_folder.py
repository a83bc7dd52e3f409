"""Protects this process and its children from a working folder that may be untrusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xftrain.utils import compilers, plot_settings
from xftrain.utils.processes import environment
from xftrain.utils.search_path import variables_of_children


def protect_libraries() -> None:
    """Makes libraries that are imported later read and link nothing in the working folder."""
    plot_settings.ignore_working_folder()
    compilers.leave_working_folder()


@contextmanager
def protected_from_working_folder() -> Iterator[None]:
    """Protects libraries, and for the duration of a block the Python processes they start."""
    protect_libraries()
    with environment(variables_of_children()):
        yield

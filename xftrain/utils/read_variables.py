"""The environment variables that the configurations of this process have read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field


@dataclass
class ReadVariables:
    """The environment variables that were read, whose values are secrets; `redaction` hides them.

    Attributes:
        values: the values of the variables, by name.
        decoded: the strings that `oc.decode` parsed from a variable, by its name.
        words: the words that contain a short value, and their redacted forms.
        recent: the variables that were read since this set was last cleared.
        public_names: returns the words that are no secrets, such as the names of options.
    """

    values: dict[str, str] = field(default_factory=dict)
    decoded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    recent: set[str] = field(default_factory=set)
    public_names: Callable[[], Collection[str]] = frozenset


# Of the process, since OmegaConf's resolvers fill it in, and it must be known to each place where a
# secret may appear: Python passes no object of a run to log formatters, warnings and tracebacks.
READ = ReadVariables()


def register_public_names(names: Callable[[], Collection[str]]) -> None:
    """Registers the function that returns the words that are no secrets.

    `config` calls this when it is imported, as it registers the resolvers, since `utils` knows no
    option.
    """
    READ.public_names = names

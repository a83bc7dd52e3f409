"""What a shell is told when it completes a command line.

Hydra completes `model/attn=` alone, not `model.attn=`, and names files as they are. Its shell
function hands every word to `compgen -W`, which runs the commands in it: `$(...)` and backquotes
of a file name in a foreign folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator

# Nothing that a shell expands, splits at or shows as anything but a letter; `~` only at no word's
# beginning. Other names have to be typed.
_HARMLESS = re.compile(r"[\w./=,+@:%-][\w./=,+@:%~-]*").fullmatch
_QUERY = re.compile(r"query=(bash|zsh|fish)").fullmatch


@contextlib.contextmanager
def safe_completion(groups: Callable[[], Collection[str]]) -> Iterator[None]:
    """While Hydra answers a shell, the answer has harmless words alone, and knows dotted groups.

    Args:
        groups: gives the slashed names of all groups; called where a shell asks.
    """
    if not any(map(_QUERY, sys.argv[1:])):
        yield
        return
    line = os.environ.get("COMP_LINE", "")
    before, blank, word = line.rpartition(" ")
    dotted, equals, rest = word.partition("=")
    group = dotted.replace(".", "/")
    is_dotted = bool(equals) and "." in dotted and group in groups()
    if is_dotted:
        os.environ["COMP_LINE"] = f"{before}{blank}{group}={rest}"  # as long as it was
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        os.environ["COMP_LINE"] = line
        text = answer.getvalue()
        text = text.replace(f"{group}=", f"{dotted}=") if is_dotted else text
        words = [word for word in re.split(r"[ \t\n]+", text) if _HARMLESS(word)]
        sys.stdout.write(("\n" if "query=fish" in sys.argv else " ").join(words) + "\n")

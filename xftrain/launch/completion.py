"""Shell completion of command lines.

Hydra completes only `model/attn=`, not `model.attn=`, and returns file names unescaped. Its shell
function passes every word to `compgen -W`, which would run `$(...)` and backquotes in a file name
of a foreign folder. It also runs any program that is first on the line and, after `python`, any
file; the functions here run only the installed xftrain.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence

# Words that a shell neither expands, splits nor displays differently; `~` must not begin a word.
# Other names are not completed.
_HARMLESS = re.compile(r"[\w./=,+@:%-][\w./=,+@:%~-]*").fullmatch
_QUERY = re.compile(r"query=(bash|zsh|fish)").fullmatch
_INSTALL = re.compile(r"(install|uninstall)=(bash|zsh|fish)").fullmatch

# Bash passes the command and the word to complete; so does zsh's bashcompinit.
_BASH = """_xftrain_complete() {
    local line="xftrain${COMP_LINE#*xftrain}" choices
    choices=$(PYTHONSAFEPATH=1 COMP_LINE="$line" command "${@:2}" -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$1"))
}
_xftrain_command() {
    COMPREPLY=()
    [ "$1" = xftrain ] && _xftrain_complete "$2" xftrain
    return 0
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _xftrain_command xftrain
"""
# `-P` and the variable keep Python from looking for xftrain in the working folder.
_BASH_MODULE = """_xftrain_module() {
    COMPREPLY=()
    case "$COMP_LINE" in
        "python -m xftrain "* | "python3 -m xftrain "*)
            if [ "$1" = python ] || [ "$1" = python3 ]; then
                _xftrain_complete "$2" "$1" -P -m xftrain
            fi ;;
    esac
    return 0
}
complete -o nospace -o default -F _xftrain_module python python3
"""
_BASH_GONE = """complete -r xftrain
unset -f _xftrain_complete _xftrain_command
"""
_BASH_MODULE_GONE = """complete -r python python3
unset -f _xftrain_module
"""
_FISH = """function _xftrain_complete
    set -l words (commandline -cpo)
    test "$words[1]" = xftrain; or return
    set -lx COMP_LINE (commandline -cp)
    set -lx PYTHONSAFEPATH 1
    command xftrain -sc query=fish 2> /dev/null
end
complete -c xftrain -x -a '(_xftrain_complete)'
"""
_FISH_GONE = """complete -e -c xftrain
functions -e _xftrain_complete
"""


@contextlib.contextmanager
def safe_completion(
    groups: Callable[[], Collection[str]], values_of: Callable[[str], Sequence[str]]
) -> Iterator[None]:
    """Patches Hydra's completion: harmless words only, dotted groups too, and all values of a key.

    For a key, Hydra completes only its current value; here all allowed values are added. For
    `install=`, the shell functions above replace Hydra's.

    Args:
        groups: returns the slashed names of all groups; called only for a completion.
        values_of: returns the allowed values of a dotted key, if they can be listed.
    """
    if found := next(filter(None, map(_INSTALL, sys.argv[1:])), None):
        with contextlib.redirect_stdout(io.StringIO()):
            yield
        sys.stdout.write(_script(*found.groups()))
        return
    if not any(map(_QUERY, sys.argv[1:])):
        yield
        return
    line = os.environ.get("COMP_LINE", "")
    before, blank, word = line.rpartition(" ")
    dotted, equals, rest = word.partition("=")
    group = dotted.replace(".", "/")
    is_dotted = bool(equals) and "." in dotted and group in groups()
    if is_dotted:
        os.environ["COMP_LINE"] = f"{before}{blank}{group}={rest}"  # the length stays the same
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        os.environ["COMP_LINE"] = line
        text = answer.getvalue()
        words = _words(text.replace(f"{group}=", f"{dotted}=") if is_dotted else text)
        if equals and group not in groups():
            values = values_of(dotted.lstrip("+~").replace("/", "."))
            more = [f"{dotted}={value}" for value in values if value.startswith(rest)]
            words = list(dict.fromkeys([*words, *filter(_HARMLESS, more)]))
        sys.stdout.write(("\n" if "query=fish" in sys.argv else " ").join(words) + "\n")


def _words(answer: str) -> list[str]:
    """The words of Hydra's answer that a shell cannot run as code."""
    return [word for word in re.split(r"[ \t\n]+", answer) if _HARMLESS(word)]


def _script(action: str, shell: str) -> str:
    """The shell code that `install=` or `uninstall=` prints for the shell to evaluate."""
    if shell == "fish":
        return _FISH if action == "install" else _FISH_GONE
    is_module = os.path.basename(sys.argv[0]) == "__main__.py"  # python -m xftrain
    if action == "install":
        return _BASH + (_BASH_MODULE if is_module else "")
    return _BASH_GONE + (_BASH_MODULE_GONE if is_module else "")

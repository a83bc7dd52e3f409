"""Where Python looks for modules: the working folder is last, and only for the user's own classes.

`python -m` puts the working folder first. A `lightning.py` in it, or a plug-in of a library, would
be imported in place of the installed one, whoever wrote it. Imports nothing that is not loaded when
Python starts, as that could come from there as well; `__future__` and `typing` are not.
"""

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_HOME = os.path.dirname(_PACKAGE)  # what has to be on the path for this package to be found
_SAFE = "PYTHONSAFEPATH"  # keeps the working folder off the path of Python processes
_OURS = "XFTRAIN_SAFE_PATH"  # beside it where this package has set it, rather than the user
_IS_REFUSED = bool(sys.flags.safe_path) and _OURS not in os.environ  # by the user, also by -P

# The modules that import what a configuration names: `_target_`, and the handlers of a log.
_LOCATORS = ("hydra._internal.utils", "logging.config", "xftrain.registry", "xftrain.signatures")


def leave_out_working_folder() -> None:
    """Undoes what `python -m` did to `sys.path`.

    Where this package is in the working folder, as in a checkout, the folder stays: behind all
    others, but before another installation of this package.
    """
    # `-m`, the module and its arguments are the last of what Python was given
    module = sys.orig_argv[-len(sys.argv)] if len(sys.orig_argv) >= len(sys.argv) else ""
    if sys.flags.safe_path or not module.partition(".")[0].endswith("xftrain"):
        return
    folder = sys.path.pop(0)
    if os.path.abspath(folder) != _HOME:
        return
    other = PathFinder.find_spec("xftrain", sys.path)
    if other is None or not other.origin:
        sys.path.append(folder)
    elif os.path.dirname(other.origin) != _PACKAGE:
        places = [os.path.abspath(place) for place in sys.path]
        home = os.path.dirname(os.path.dirname(os.path.abspath(other.origin)))
        sys.path.insert(places.index(home) if home in places else len(places), folder)


class _OwnClasses:
    """Finds what a configuration names and no package has in the working folder.

    Only a `_target_` opens the folder, and from then on it is the last place to look: a library
    that tries to import something optional, or looks for plug-ins, does not find it there before.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        """Python asks this finder last."""
        if path is not None or self.folder in sys.path or _importer() not in _LOCATORS:
            return None
        if PathFinder.find_spec(name, [self.folder]) is None:
            return None
        sys.path.append(self.folder)
        return PathFinder.find_spec(name)


def find_own_classes() -> None:
    """Lets classes of a configuration be found in the working folder, unless `-P` forbids it."""
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _OwnClasses)]
    sys.meta_path[:] = finders if _IS_REFUSED else [*finders, _OwnClasses(os.getcwd())]


def _importer() -> str:
    """The module that imports something just now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__ and name.partition(".")[0] != "importlib":
            return name
        frame = frame.f_back
    return ""


def variables_of_children() -> dict[str, str]:
    """With these variables, Python processes that are started do not see the working folder."""
    if os.getcwd() == _HOME:  # where they find this package
        return {}
    return {_SAFE: "1"} if _IS_REFUSED else {_SAFE: "1", _OURS: "1"}


def forget_variables() -> None:
    """Takes them away again: a class of the user's own may start Python programs as usual."""
    if os.environ.pop(_OURS, None):
        os.environ.pop(_SAFE, None)

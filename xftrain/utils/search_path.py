"""Python's module search path: the working folder is last, and only for the user's own classes.

`python -m` puts the working folder first, so that a `lightning.py` in it, or a library's plug-in,
would shadow the installed module, even in an untrusted folder. This module imports only what Python
has loaded at startup, not even `__future__` or `typing`, which could come from that folder as well.
"""

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType
    from typing import Any

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_HOME = os.path.dirname(_PACKAGE)  # the entry of `sys.path` by which this package is found
_SAFE = "PYTHONSAFEPATH"  # keeps the working folder off the path of Python processes
_OURS = "XFTRAIN_SAFE_PATH"  # set if this package, rather than the user, set PYTHONSAFEPATH
# Variables whose empty entries programs take for the working folder.
_SEARCH_PATHS = (
    "PYTHONPATH",
    "PATH",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "COMPILER_PATH",
)
_IS_REFUSED = bool(sys.flags.safe_path) and _OURS not in os.environ  # the user set it, or -P

# The modules that import what a configuration names: `_target_`, and the handlers of a log.
_LOCATORS = (
    "hydra._internal.utils",
    "logging.config",
    "xftrain.config.registry",
    "xftrain.config.signatures",
)
# The (module, function) pairs that unpickle objects from a process of the same command.
_UNPICKLERS = (
    ("multiprocessing.spawn", "_main"),  # a new process
    ("multiprocessing.queues", "get"),
    ("multiprocessing.connection", "recv"),
    ("torch.multiprocessing.queue", "recv"),
)


def leave_out_working_folder() -> None:
    """Removes the working folder that `python -m` put first in `sys.path`.

    If this package is in the working folder, as in a checkout, the folder stays on the path, after
    all others but before another installation of this package.
    """
    # `-m`, the module and its arguments come last on Python's command line
    module = sys.orig_argv[-len(sys.argv)] if len(sys.orig_argv) >= len(sys.argv) else ""
    if sys.flags.safe_path or not module.partition(".")[0].endswith("xftrain"):
        return
    _put_back(sys.path.pop(0))


def leave_out_empty_entries() -> None:
    """Removes empty entries, which mean the working folder, from variables with search paths.

    They are rarely intended: `PYTHONPATH=$PYTHONPATH:/mine` has one if the variable was unset,
    and Python, the shell, the linker and the compiler then look in the working folder, also in
    child processes. Python's path in this process loses the entry as well.
    """
    for name in _SEARCH_PATHS:
        entries = os.environ.get(name, "").split(os.pathsep)
        named = [entry for entry in entries if entry]
        if "" not in entries or not os.environ.get(name):
            continue
        if named:
            os.environ[name] = os.pathsep.join(named)
        else:
            del os.environ[name]
        if name == "PYTHONPATH" and not sys.flags.ignore_environment:
            _remove_unnamed(named)


def _remove_unnamed(named: "list[str]") -> None:
    """Removes the working folder from `sys.path` unless PYTHONPATH names it."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return
    if here in sys.path and here not in map(os.path.abspath, named):
        sys.path.remove(here)
        _put_back(here)


def _put_back(folder: str) -> None:
    """Puts a folder that was removed last in `sys.path` if this package was found in it."""
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
    """Finds modules in the working folder that a configuration names, and those they import.

    Libraries that try optional imports or look for plug-ins do not find them there, since the
    folder is not on `sys.path`.

    Args:
        folder: the working folder.
        modules: names of top-level modules that were found in it.
    """

    def __init__(self, folder: str, modules: "Iterable[str]" = ()) -> None:
        self.folder, self.modules = folder, set(modules)

    def find_spec(self, name: str, path: object = None, target: object = None) -> "Any":
        """Finds a module after all other finders of Python; `path` is set for submodules."""
        if path is not None or not self._may_import(*_importer()):
            return None
        spec = PathFinder.find_spec(name, [self.folder])
        if spec is not None:
            self.modules.add(name)
            pass_on_to_processes()
        return spec

    def __reduce__(self) -> "Any":
        """Makes unpickling in a `multiprocessing` process install a finder there."""
        return _add_finder, (self.folder, sorted(self.modules))

    def _may_import(self, module: str, function: str) -> bool:
        is_own = module.partition(".")[0] in self.modules
        is_pickle_of_own_process = bool(self.modules) and (module, function) in _UNPICKLERS
        return is_own or module in _LOCATORS or is_pickle_of_own_process


def find_own_classes() -> None:
    """Allows a configuration's classes to be in the working folder, unless `-P` forbids it."""
    if _IS_REFUSED:
        sys.meta_path[:] = [
            finder for finder in sys.meta_path if not isinstance(finder, _OwnClasses)
        ]
    else:
        _add_finder(os.getcwd())


def _add_finder(folder: str, modules: "Iterable[str]" = ()) -> None:
    """Installs a finder for this folder in place of earlier ones, and keeps their modules."""
    earlier = [finder for finder in sys.meta_path if isinstance(finder, _OwnClasses)]
    known = {name for finder in earlier if finder.folder == folder for name in finder.modules}
    finder = _OwnClasses(folder, known.union(modules))
    sys.meta_path[:] = [*(other for other in sys.meta_path if other not in earlier), finder]
    if finder.modules:
        pass_on_to_processes()


def pass_on_to_processes() -> None:
    """Passes the finder to each process that `multiprocessing` starts by spawn or forkserver.

    Objects of the user's own classes are unpickled there before anything else is imported.
    """
    from multiprocessing import spawn

    original = spawn.get_preparation_data
    if hasattr(original, "has_finder"):
        return

    def with_finder(name: str) -> dict[str, object]:
        finders = [finder for finder in sys.meta_path if isinstance(finder, _OwnClasses)]
        return {**original(name), "xftrain_finders": finders}

    with_finder.has_finder = True  # type: ignore[attr-defined]
    spawn.get_preparation_data = with_finder


def _importer() -> "tuple[str, str]":
    """The module and the function that execute the current import."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__ and name.partition(".")[0] != "importlib":
            return name, frame.f_code.co_name
        frame = frame.f_back
    return "", ""


def variables_of_children() -> dict[str, str]:
    """Environment variables that keep child Python processes from importing from this folder.

    They are set for the whole command, since libraries start Python processes at any time, as
    torch's compiler does with `python -c`, which searches the working folder first.
    """
    if os.getcwd() == _HOME:  # child processes find this package there
        return {}
    return {_SAFE: "1"} if _IS_REFUSED else {_SAFE: "1", _OURS: "1"}

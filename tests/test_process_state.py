"""What a run decides is an object that is passed: no module holds state, except where it must."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# The state of the process, and why it can be no object that is passed. docs/architecture.md has it.
OF_THE_PROCESS = {
    "folders.lock._locked_files": "a forked child closes the files of its parent's locks",
    "kernels.matmul._setting": "custom operators take only tensors",
    "multirun.command_state._of_command": "Hydra builds its callbacks and passes them nothing",
    "utils.console._thread": "libraries write to sys.stdout, which is of the process",
    "utils.heartbeat._num_beats": "the watchdog is a thread, of which a data source does not know",
    "utils.processes.rank_died": "the ranks are children of the process, watched by a thread",
    "utils.read_variables.READ": "log formatters, warnings and tracebacks are passed no object",
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Classes whose instances are made to be changed.
_STATEFUL = {
    *("ContextVar", "local", "Event", "Lock", "RLock", "Queue", "SimpleQueue", "SimpleNamespace"),
    *("deque", "defaultdict", "Counter", "OrderedDict", "WeakKeyDictionary", "WeakValueDictionary"),
}
_CHANGING = {
    *("append", "add", "update", "extend", "insert", "remove", "discard", "clear", "pop"),
    *("popitem", "setdefault", "sort", "reverse", "appendleft", "popleft", "move_to_end"),
}


def _modules(package: Path) -> dict[str, ast.Module]:
    paths = {path: path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    return {
        ".".join(name.parts).removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
        for path, name in sorted(paths.items())
    }


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The names that a module assigns at its top, with their values."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value  # type: ignore[union-attr]


def _mutable_classes(trees: dict[str, ast.Module]) -> set[str]:
    """The package's own classes whose instances can be changed."""
    classes = {}
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                text = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
                classes[node.name] = "frozen=True" in text or "NamedTuple" in text
    return {name for name, is_frozen in classes.items() if not is_frozen}


def _aliases(tree: ast.Module) -> dict[str, str]:
    """What a module's names stand for in the package: a module, or a name in one."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xftrain"):
            prefix = str(node.module).removeprefix("xftrain").removeprefix(".")
            for alias in node.names:
                full = f"{prefix}.{alias.name}".removeprefix(".")
                found[alias.asname or alias.name] = full
    return found


def _changed(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions whose values a statement or a call changes."""
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
        todo = list(targets)
        while todo:
            target = todo.pop()
            if isinstance(target, ast.Tuple | ast.List):
                todo += target.elts
            elif isinstance(target, ast.Subscript):
                yield target.value
            elif isinstance(target, ast.Attribute):
                yield target  # an attribute of a module
                yield target.value  # an attribute of an object
            elif isinstance(node, ast.AugAssign):
                yield target
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in _CHANGING:
            yield node.func.value


def _locals(function: Any) -> set[str]:
    """The names that a function binds, which hide those of the module."""
    spec = function.args
    names = {arg.arg for arg in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]}
    names |= {arg.arg for arg in (spec.vararg, spec.kwarg) if arg}
    bound = (node for node in ast.walk(function) if isinstance(node, ast.Name))
    return names | {node.id for node in bound if isinstance(node.ctx, ast.Store)}


def _state(package: Path) -> set[str]:
    """Every name of a module that holds state, and every `global` statement, by its full name."""
    trees = _modules(package)
    own = {module: dict(_assigned(tree)) for module, tree in trees.items()}
    mutable, found = _mutable_classes(trees), set()
    for module, tree in trees.items():
        for name, value in own[module].items():
            if isinstance(value, ast.Subscript):
                value = value.value
            if isinstance(value, ast.Call):
                made = ast.unparse(value.func).rpartition(".")[2].partition("[")[0]
                if made in _STATEFUL | mutable:
                    found.add(f"{module}.{name}")
        aliases = _aliases(tree)
        scopes = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        for scope in [*scopes, *(node for node in tree.body if node not in scopes)]:
            hidden = _locals(scope) if scope in scopes else set()
            for node in ast.walk(scope):
                if isinstance(node, ast.Global):
                    found |= {f"{module}.{name}" for name in node.names}
                for changed in _changed(node):
                    first, _, rest = ast.unparse(changed).partition(".")
                    if first in hidden or not first.isidentifier():
                        continue
                    full = aliases.get(first, f"{module}.{first}" if first in own[module] else "")
                    full = f"{full}.{rest}" if full in trees and rest else full
                    home, _, name = full.rpartition(".")
                    # a module may build its own tables when it is imported
                    if name in own.get(home, {}) and (scope in scopes or home != module):
                        found.add(full)
    return found


def test_state_of_the_process_is_only_what_must_be():
    assert _state(ROOT / "xftrain") == set(OF_THE_PROCESS)


def test_state_in_a_module_is_found(tmp_path):
    sources = {
        "utils/counts.py": "seen = set()\nSIZES = {1: 2}\nnum = 0\n_NAMES: list[str] = ['a']\n"
        "def f():\n    global num\n    seen.add(1)\n"
        "def g(SIZES):\n    SIZES[1] = 3\n    _NAMES = []\n    _NAMES.append('b')\n",
        "utils/made.py": "from dataclasses import dataclass\nfrom contextvars import ContextVar\n"
        "@dataclass\nclass Loose:\n    a: int = 0\n"
        "@dataclass(frozen=True)\nclass Frozen:\n    a: int = 0\n"
        "LOOSE, FROZEN = 1, 2\nLOOSE = Loose()\nFROZEN = Frozen()\n"
        "_var: ContextVar[int] = ContextVar('v')\n",
        "utils/hook.py": "names = frozenset\ntable = {}\nread: dict[int, int] = {}\nkept = {}\n"
        "kept[1] = 2\n",
        "config/sets.py": "from xftrain.utils import hook\n"
        "from xftrain.utils.hook import read as r\nhook.names = set\n"
        "def f():\n    hook.table[1] = 2\n    r.update({1: 2})\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _state(tmp_path) == {
        *("utils.counts.seen", "utils.counts.num", "utils.made.LOOSE", "utils.made._var"),
        *("utils.hook.names", "utils.hook.table", "utils.hook.read"),
    }

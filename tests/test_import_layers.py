"""The layers of the package: imports point down only, and heavy packages stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the lowest up: the folders and modules at the root of the package. A file may import from its
# own folder and from the folders of the layers below; folders of one layer do not know each other.
LAYERS = [
    ["errors", "version"],
    ["utils"],
    ["folders", "interfaces"],
    ["config"],  # finds the options on disk by their names, and imports none
    ["kernels"],
    ["model", "data", "schedule"],
    ["loss", "checkpoint"],
    ["train", "generation", "evaluation", "hugging_face"],
    ["optim", "logger", "callbacks", "memory"],
    ["commands"],
    ["benchmark"],  # trains as the commands do
    ["multirun"],
    ["launch"],
    [""],  # xftrain/__init__.py, the public API
    ["__main__"],
]
# Folders of options inside xftrain/model, which meet in `interfaces` alone.
OPTIONS_OF_MODEL = [f"model.{group}" for group in ("attn", "bias", "pos", "heads", "ffn", "norm")]

# Answering --help and refusing a wrong configuration must not wait seconds for these.
HEAVY = {"torch", "lightning", "torchmetrics", "xformers", "matplotlib", "tensorboard"}
LIGHT_UNITS = ["", "config", "folders", "multirun", "launch", "__main__"]
NOT_LIGHT = {"multirun.plot", "config.composed_parts"}  # imported when they are needed

# Importing xFormers has traps, so one unit does it for the others.
XFORMERS_UNIT = "model.attn.xformers_ops"


def _within(module: str, unit: str) -> bool:
    return module == unit or (unit != "" and module.startswith(unit + "."))


def _modules(package: Path) -> dict[str, Path]:
    """Every module by its dotted name inside the package; the package itself is ""."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _nodes(tree: ast.Module, *, at_import: bool) -> Iterator[ast.AST]:
    """All nodes, or those that run when the module is imported."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo.extend(node.orelse)
            continue
        todo.extend(ast.iter_child_nodes(node))


def _imports(path: Path, modules: dict[str, Path], *, at_import: bool = False) -> set[str]:
    """Dotted names that a module imports, by statement or by `import_module("...")`.

    `from a import b` is `a.b` where that is a module.
    """
    names: set[str] = set()
    for node in _nodes(ast.parse(path.read_text("utf-8")), at_import=at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full.removeprefix("xftrain.") in modules else node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def _own(imports: set[str]) -> set[str]:
    """Of some imports, those of the package, without its name."""
    inside = {name for name in imports if _within(name, "xftrain")}
    return {name.removeprefix("xftrain").removeprefix(".") for name in inside}


def _place(module: str) -> tuple[int, str] | None:
    """The layer and the folder of a module."""
    folder = module.partition(".")[0]
    return next(((n, folder) for n, layer in enumerate(LAYERS) if folder in layer), None)


def _upward_imports(package: Path) -> list[str]:
    """Every import that does not point down, and every module that is in no layer."""
    modules, faults = _modules(package), []
    for module, path in modules.items():
        here = _place(module)
        if here is None:
            faults.append(f"{module}: {module.partition('.')[0]} is in none of LAYERS")
            continue
        for target in sorted(_own(_imports(path, modules))):
            there = _place(target)
            if there is None or (there != here and there[0] >= here[0]):
                below = ", ".join(name for layer in LAYERS[: here[0]] for name in layer)
                faults.append(f"{module} imports {target}; it may import {here[1]}, {below}")
    return faults


def _helpers_of_others(package: Path) -> list[str]:
    """Every import of a helper `_name.py` from outside the folder at the root that holds it."""
    modules = _modules(package)
    return [
        f"{module} imports {target}, a helper of {target.partition('.')[0]}"
        for module, path in modules.items()
        for target in sorted(_own(_imports(path, modules)))
        if "._" in target and _place(target) != _place(module)
    ]


def _circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, the first one again at the end; empty where none do.

    Late imports and those for annotations count as well: a reader follows them all the same.
    """
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports.get(module, ())):
            if found := search(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in imports if (found := search(module, []))), [])


def _uses_xformers(text: str) -> bool:
    """Whether code names the module `xformers.ops` or a part of it."""
    names = {"xformers_ops", "fmha", "memory_efficient_attention", "_dispatch_fw", "_dispatch_bw"}
    used = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute):
            used.add(node.id if isinstance(node, ast.Name) else node.attr)
    return bool(used & names)


MODULES = _modules(ROOT / "xftrain")


def test_imports_point_down():
    assert _upward_imports(ROOT / "xftrain") == []


def test_an_import_that_points_up_or_sideways_is_found(tmp_path):
    sources = {
        "errors.py": "",
        "utils/files.py": "from xftrain.errors import ConfigError\n",
        "utils/late.py": "def f():\n    from xftrain.config import compose\n",
        "config/compose.py": "import xftrain.utils.files\n",
        "loss/full.py": "import xftrain.checkpoint.file\n",
        "checkpoint/file.py": "from xftrain.data import _packing\n",
        "data/_packing.py": "",
        "helpers.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    faults = [fault.partition(";")[0] for fault in _upward_imports(tmp_path)]
    assert faults == [
        "helpers: helpers is in none of LAYERS",
        "loss.full imports checkpoint.file",
        "utils.late imports config.compose",
    ]
    assert _helpers_of_others(tmp_path) == [
        "checkpoint.file imports data._packing, a helper of data"
    ]


def test_helpers_stay_in_their_folder():
    assert _helpers_of_others(ROOT / "xftrain") == []


def test_options_of_the_model_do_not_know_those_of_other_groups():
    known = {
        (module, target)
        for module, path in MODULES.items()
        for target in _own(_imports(path, MODULES))
        for unit in OPTIONS_OF_MODEL
        if _within(target, unit) and not _within(target, XFORMERS_UNIT)
        if any(_within(module, other) for other in OPTIONS_OF_MODEL if other != unit)
    }
    assert known == set()


def test_the_memory_prediction_imports_no_option():
    known = {
        (module, target)
        for module, path in MODULES.items()
        for target in _own(_imports(path, MODULES))
        if _within(module, "memory")
        if any(_within(target, f"model.{group.rpartition('.')[2]}") for group in OPTIONS_OF_MODEL)
        or target.partition(".")[0] in ("loss", "data", "optim", "schedule", "callbacks", "logger")
    }
    assert known == set()


def test_the_root_stays_a_map():
    assert {path.stem for path in (ROOT / "xftrain").glob("*.py")} == {
        *("__init__", "__main__", "errors", "version")
    }


def test_no_files_import_each_other():
    imports = {
        # every module imports the public API's package, which imports it once it is used
        module: {target for target in _own(_imports(path, MODULES)) if target} - {module}
        for module, path in MODULES.items()
    }
    assert _circle(imports) == []


def test_a_circle_of_files_is_found():
    assert _circle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == ["b", "c", "d", "b"]


@pytest.mark.parametrize("unit", LIGHT_UNITS)
def test_importing_it_reaches_no_heavy_package(unit):
    units = {m for m in MODULES if m == unit or (unit and _within(m, unit))} - NOT_LIGHT
    reached, todo, heavy = set(), sorted(units), {}
    while todo:
        module = todo.pop()
        if module in reached or module not in MODULES:
            continue
        reached.add(module)
        imports = _imports(MODULES[module], MODULES, at_import=True)
        found = {name.split(".")[0] for name in imports} & HEAVY
        heavy |= {module: found} if found else {}
        for name in _own(imports):
            parts = name.split(".")
            todo += [".".join(parts[:end]) for end in range(len(parts) + 1)]  # parents run as well

    assert unit in reached
    assert heavy == {}


def test_xformers_is_imported_in_one_unit_only():
    importers = {
        module
        for module, path in MODULES.items()
        if any(_within(name, "xformers") for name in _imports(path, MODULES))
    }
    assert importers
    assert {module for module in importers if not _within(module, XFORMERS_UNIT)} == set()


def test_the_names_of_xformers_are_used_in_one_unit_only():
    users = {module for module, path in MODULES.items() if _uses_xformers(path.read_text("utf-8"))}
    assert users
    assert {module for module in users if not _within(module, XFORMERS_UNIT)} == set()


@pytest.mark.parametrize(
    "text",
    [
        "from xftrain.model.attn.xformers_ops.loading import xformers_ops",
        "loading.xformers_ops().swiglu",
        "ops.fmha.attn_bias.LowerTriangularMask()",
        "_dispatch_fw(inputs)",
    ],
)
def test_a_use_of_xformers_is_found(text):
    assert _uses_xformers(text)
    assert not _uses_xformers("from xftrain.model.attn.xformers_ops.attention import mask_for")

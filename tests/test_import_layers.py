"""The layers of the package: imports point down only, and heavy packages stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the lowest up. A unit is a module, or a package with all it holds. A module may import its
# own unit and the units of the layers below; units of one layer do not know each other.
LAYERS = [
    ["errors", "printable", "search_path", "working_folder", "plot_style", "moved_keys"],
    ["compile_cache", "import_hooks"],
    ["compilers"],
    ["completion", "config_tree", "fields", "markdown", "spellings", "spreadsheet", "version"],
    ["url_passwords"],
    ["option_config"],
    ["files", "processes", "redaction", "run_config"],
    ["plot_settings"],
    ["untrusted_folder", "console", "neighboring_runs", "optimized", "signatures", "records"],
    ["config_schema", "folder_links", "folder_lock", "folder_owner", "seal"],
    ["yaml_files"],
    ["own_code", "sqlite_files", "values", "hydra_errors", "hydra_files", "run_folder"],
    ["own_classes", "composed_parts"],
    ["registry"],  # the options by name, read from their sources: importing it imports none
    ["option_checks"],
    ["transfer", "batch_checks", "layer_pattern", "help_text"],
    ["interfaces", "compilation", "memory", "timing"],
    ["attention.dense", "attention.limits", "attention.xformers_ops", "kernels"],
    ["attention.folding"],
    ["attention.stand_in"],
    ["attention.biases", "attention.backends"],  # they meet in interfaces.AttnBias alone
    ["layers"],
    ["initialization", "losses", "tied"],
    ["model"],
    ["generate"],
    ["data", "schedule"],
    ["training"],
    ["overrides"],
    ["composition_errors", "merged_options"],
    ["root_schema"],
    ["config_checks"],
    ["config"],
    ["builder"],
    ["peak", "own_parts"],
    ["preflight"],
    ["prepare", "results", "run_description", "sweep_data"],
    ["oom", "run_callbacks", "run_loggers"],
    ["runner", "sample"],
    ["benchmark"],  # its rows of training are runs
    ["recorded_overrides", "job_config", "former_sweep", "run_folders", "info", "sweep_order"],
    ["commands", "sweep_record", "sweep_table"],
    ["completed_jobs"],
    ["sweeps", "folder_hooks"],
    ["ranks", "sweep_checks", "sweep_plot", "arguments", "field_values"],
    ["sweep_end"],
    [""],  # xftrain/__init__.py, the public API
    ["cli"],
    ["__main__"],
]

# Answering --help and refusing a wrong configuration must not wait seconds for these.
HEAVY = {"torch", "lightning", "torchmetrics", "xformers", "matplotlib", "tensorboard"}
LIGHT_UNITS = [
    "",
    "registry",
    "config",
    "config_checks",
    "sweeps",
    "sweep_record",
    "recorded_overrides",
    "job_config",
    "completed_jobs",
    "arguments",
    "run_folders",
    "seal",
    "sweep_table",
    "sweep_checks",
    "sweep_data",
    "former_sweep",
]
LIGHT_UNITS += ["option_checks", "run_config", "cli", "__main__"]

# Importing xFormers has traps, so one unit does it for the others.
XFORMERS_UNIT = "attention.xformers_ops"


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
    """The layer and the unit of a module."""
    for layer, units in enumerate(LAYERS):
        for unit in units:
            if _within(module, unit):
                return layer, unit
    return None


def _upward_imports(package: Path) -> list[str]:
    """Every import that does not point down, and every module that is in no layer."""
    modules, faults = _modules(package), []
    for module, path in modules.items():
        here, targets = _place(module), sorted(_own(_imports(path, modules)))
        if here is None:
            if targets or path.name != "__init__.py":  # a bare __init__.py may hold several units
                faults.append(f"{module} is in none of LAYERS")
            continue
        for target in targets:
            there = _place(target)
            if there is None:
                faults.append(f"{module} imports {target}, which is in none of LAYERS")
            elif there != here and there[0] >= here[0]:
                faults.append(f"{module} imports {target}, which is not below it")
    return faults


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


MODULES = _modules(ROOT / "xftrain")


def test_imports_point_down():
    assert _upward_imports(ROOT / "xftrain") == []


def test_an_import_that_points_up_or_sideways_is_found(tmp_path):
    sources = {
        "errors.py": "",
        "config.py": "from xftrain.errors import ConfigError\n",
        "layers/heads.py": "def f():\n    from xftrain import config\n",  # late, but upward
        "attention/biases/causal.py": "import xftrain.attention.backends.sdpa\n",
        "attention/backends/sdpa.py": "from xftrain.attention.backends import naive\n",
        "attention/backends/naive.py": "",
        "helpers.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert _upward_imports(tmp_path) == [
        "attention.biases.causal imports attention.backends.sdpa, which is not below it",
        "helpers is in none of LAYERS",
        "layers.heads imports config, which is not below it",
    ]


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
    reached, todo, heavy = set(), [unit], {}
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


def test_no_file_is_long():
    files = (
        path for part in ("xftrain", "tests", "scripts") for path in (ROOT / part).rglob("*.py")
    )
    lengths = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}

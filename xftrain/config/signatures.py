"""Reads the fields of a class or function from its source, without importing it.

Fields are keyword-only parameters. Annotations may use built-in types, `Literal`, `Annotated`, the
names of `xftrain.config.fields`, and names assigned at the top of the same module.
"""

from __future__ import annotations

import ast
import enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from xftrain.config import fields as field_types

_ROOT = Path(__file__).resolve().parents[2]
_TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict)},
    **{name: getattr(field_types, name) for name in field_types.__all__},
    "Annotated": Annotated,
    "Literal": Literal,
}


class Required(enum.Enum):
    """The type of REQUIRED, which marks a field without a default."""

    REQUIRED = "required"


REQUIRED = Required.REQUIRED


class Field(NamedTuple):
    """One field of an option: its annotation, rules included, and its default or `REQUIRED`."""

    annotation: Any
    default: Any


def source_of(module: str) -> Path:
    """The source file of a module of this package."""
    path = _ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def fields_of(module: str, name: str) -> dict[str, Field]:
    """The fields of a class or function, by name."""
    path = source_of(module)
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _class_fields(path, node)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _keyword_only(path, node)
    raise AssertionError(f"{path} has no {name}")


def class_value(module: str, name: str, attribute: str) -> Any:
    """The constant that a class or its base assigns to an attribute; None if neither does."""
    found = _find_class(source_of(module), name)
    while found is not None:
        path, node = found
        for item in node.body:
            targets = item.targets if isinstance(item, ast.Assign) else []
            if attribute in [getattr(target, "id", "") for target in targets]:
                return ast.literal_eval(item.value)  # type: ignore[attr-defined]
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        found = next(filter(None, (_find_class(path, base) for base in bases)), None)
    return None


def option_class(path: Path) -> str | None:
    """The option's class in a file, by the file's name: CountingPacked in `counting_packed.py`."""
    nodes = _parse(path).body if path.is_file() else []
    wanted = path.stem.replace("_", "")
    for node in nodes:
        # none.py has None_, since None is a keyword
        if isinstance(node, ast.ClassDef) and node.name.rstrip("_").lower() == wanted:
            return node.name
    return None


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _class_fields(path: Path, node: ast.ClassDef) -> dict[str, Field]:
    """The keyword-only parameters of a class's constructor, which a base may define."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _keyword_only(path, item)
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _find_class(path, base.id)):
            return _class_fields(*found)
    return {}


def _find_class(path: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """Finds a class in a module, or in the module of this package that it is imported from."""
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) != name:
                    continue
                source = source_of(str(node.module))
                if source.is_relative_to(_ROOT / "xftrain"):
                    return _find_class(source, alias.name)
    return None


def _keyword_only(path: Path, node: ast.FunctionDef) -> dict[str, Field]:
    fields = {}
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        assert arg.annotation is not None, f"{path}:{arg.lineno}: {arg.arg} has no annotation"
        value = REQUIRED if default is None else _evaluate(path, default)
        fields[arg.arg] = Field(_evaluate(path, arg.annotation), value)
    return fields


def _evaluate(path: Path, node: ast.expr) -> Any:
    """Evaluates an annotation or a default in this package's source, without importing it."""
    values = dict(_TYPES)
    for name in {item.id for item in ast.walk(node) if isinstance(item, ast.Name)} - set(values):
        values[name] = _evaluate(path, _assigned(path, name))
    code = compile(ast.Expression(node), str(path), "eval")
    return eval(code, {"__builtins__": {}}, values)


def _assigned(path: Path, name: str) -> ast.expr:
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", "") for t in node.targets]:
            return node.value
    raise AssertionError(f"{path}: {name} is no built-in type, field type or name of the module")

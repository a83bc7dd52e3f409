"""Finds one-line mutations of a source file and applies them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_CALLS = {"any": "all", "all": "any", "min": "max", "max": "min"}


class Mutation(NamedTuple):
    """A replacement of a range of the source.

    Attributes:
        first_line: line on which the range begins, from 1.
        first_column: column at which it begins, in bytes, as in `ast`.
        last_line: line on which it ends.
        last_column: column before which it ends.
        text: the replacement.
        description: both versions in short, as in "`a < b` -> `a <= b`".
        statement: line of the innermost statement inside a function that contains the range, or 0
            if the code runs when the module is imported.
    """

    first_line: int
    first_column: int
    last_line: int
    last_column: int
    text: str
    description: str
    statement: int


def mutations(source: str) -> list[Mutation]:
    """Returns all mutations of a source, sorted by position.

    Annotations, docstrings and log calls are not mutated.
    """
    tree = ast.parse(source)
    found = dict.fromkeys(_mutations_in(tree))
    return sorted(one for one in found if _compiles(mutated(source, one)))


def mutated(source: str, mutation: Mutation) -> str:
    """Returns the source with the mutation applied."""
    lines = source.encode().split(b"\n")
    before = lines[mutation.first_line - 1][: mutation.first_column]
    after = lines[mutation.last_line - 1][mutation.last_column :]
    # keeps the number of lines
    text = mutation.text.encode() + after + b"\n" * (mutation.last_line - mutation.first_line)
    lines[mutation.first_line - 1 : mutation.last_line] = (before + text).split(b"\n")
    return b"\n".join(lines).decode()


def instrumented(source: str, file: str) -> str:
    """Returns the source with a call of `builtins.reached(file, line)` before each statement.

    The call does nothing unless `builtins.reached` is defined. This is faster than tracing the
    interpreter, and records only statements inside functions and in compound statements.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list) and not isinstance(node, ast.Module | ast.ClassDef):
                setattr(node, name, list(_with_calls(statements, file, is_function=is_function)))
    start = "import builtins as _b\n_reached = getattr(_b, 'reached', lambda file, line: None)\n"
    index = 0  # after the docstring and the `from __future__` imports
    while isinstance(tree.body[index], ast.Expr | ast.ImportFrom) and index + 1 < len(tree.body):
        index += 1
    tree.body[index:index] = ast.parse(start).body
    return ast.unparse(ast.fix_missing_locations(tree))


def _with_calls(statements: list[ast.stmt], file: str, *, is_function: bool) -> Iterator[ast.stmt]:
    for number, statement in enumerate(statements):
        is_docstring = is_function and number == 0 and isinstance(statement, ast.Expr)
        is_docstring = is_docstring and isinstance(statement.value, ast.Constant)  # type: ignore[attr-defined]
        if not is_docstring:
            yield from ast.parse(f"_reached({file!r}, {statement.lineno})").body
        yield statement


def _mutations_in(
    node: ast.AST, statement: int = 0, *, in_function: bool = False
) -> Iterator[Mutation]:
    if isinstance(node, ast.JoinedStr | ast.Assert) or _is_skipped(node):
        return
    if isinstance(node, ast.stmt) and in_function:
        statement = node.lineno
    for replacement in _replacements(node):
        yield _mutation(node, replacement, statement)
    is_function = isinstance(node, ast.FunctionDef)
    for name, child in _children(node):
        if name not in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            is_inside = in_function or (is_function and name == "body")
            yield from _mutations_in(child, statement, in_function=is_inside)


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield name, child


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Expr):
        is_docstring = isinstance(node.value, ast.Constant)
        return is_docstring or ast.unparse(node.value).startswith("log.")
    return False


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that replace this one, one per mutation."""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            for other in _COMPARISONS[type(operator)]:
                changed = deepcopy(node)
                changed.ops[number] = other()
                yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
        yield ast.AugAssign(node.target, _OPERATORS[type(node.op)](), node.value)
        yield ast.Pass()
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield from (node.values[0], node.values[-1])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Raise | ast.Continue | ast.Break):
        yield ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        yield ast.Pass()
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in _CALLS:
        yield ast.Call(ast.Name(_CALLS[node.func.id]), node.args, node.keywords)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _constants(node.value))
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp):
        changed = deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed


def _constants(value: object) -> tuple[object, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1)
    return (value * 2,) if isinstance(value, float) and value else ()


def _mutation(node: ast.AST, replacement: ast.AST, statement: int) -> Mutation:
    old, new = node, replacement
    if isinstance(node, ast.If | ast.While):  # only the condition is replaced
        assert isinstance(replacement, ast.If | ast.While)
        old, new = node.test, replacement.test
    text = ast.unparse(new)
    if isinstance(new, ast.expr) and not isinstance(new, ast.Constant | ast.Name | ast.Call):
        text = f"({text})"
    description = f"`{_short(old)}` -> `{_short(new)}`"
    assert isinstance(old, ast.expr | ast.stmt)
    assert old.end_lineno is not None and old.end_col_offset is not None
    begin, end = (old.lineno, old.col_offset), (old.end_lineno, old.end_col_offset)
    return Mutation(*begin, *end, text, description, statement)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True

"""Files and functions are short."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_function_of_the_commands_and_the_launch_is_long():
    lengths = {
        f"{path.relative_to(ROOT)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for folder in ("commands", "launch")
        for path in (ROOT / "xftrain" / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert lengths and {name: lines for name, lines in lengths.items() if lines > 40} == {}


def test_no_file_is_long():
    files = (
        path for part in ("xftrain", "tests", "scripts") for path in (ROOT / part).rglob("*.py")
    )
    lengths = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}

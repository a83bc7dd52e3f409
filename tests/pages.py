"""The pages that a user reads, and what a test needs of them: commands, example files, tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
}
README = PAGES["README.md"]
BENCHMARK, EXTENDING = PAGES["docs/benchmark.md"], PAGES["docs/extending.md"]
OPTIONS, RESULTS = PAGES["docs/options.md"], PAGES["docs/results.md"]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(*texts: str) -> list[str]:
    """The lines of the bash blocks, without comments; a command that several pages show is one."""
    lines = [line for t in texts for block in blocks(t, "bash") for line in block.splitlines()]
    found = [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]
    return list(dict.fromkeys(found))


def files(*texts: str) -> dict[str, str]:
    """The blocks that begin with a comment of their own path."""
    found = {}
    for block in [b for t in texts for language in ("python", "yaml") for b in blocks(t, language)]:
        if match := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            assert match[1] not in found, f"two blocks are {match[1]}"
            found[match[1]] = block
    return found


def table(text: str, header: str) -> list[list[str]]:
    """The rows below the line that begins with `header`, cell by cell."""
    _, found, rest = text.partition(f"\n| {header}")
    assert found, header
    rows = []
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def word(cell: str) -> str:
    """What a cell has between backquotes."""
    return cell.split("`")[1]


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page, in links to them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Those of an option of xftrain itself, which exists in an enlarged copy of the package alone.
GUIDE = [command for command in commands(EXTENDING) if "einsum" in command]
COMMANDS = [command for command in commands(*PAGES.values()) if command not in GUIDE]
OF_THE_PACKAGE = ("xftrain/", "conf/")  # where its files are; other examples are a reader's own

"""What the tables and links of README.md, CONTRIBUTING.md and docs/ say is so."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import xftrain
from tests.model.attn import test_parity
from tests.model.attn.cells import CELLS
from tests.pages import (
    BENCHMARK,
    EXTENDING,
    OPTIONS,
    PAGES,
    README,
    RESULTS,
    ROOT,
    anchors,
    files,
    table,
    word,
)
from xftrain.config.overrides import groups_in
from xftrain.config.registry import GROUPS, conf_dir, load_class, option_names
from xftrain.errors import ConfigError
from xftrain.launch import cli
from xftrain.model.attn._folding import folding_reasons
from xftrain.model.backends import all_backends
from xftrain.model.bias.alibi import Alibi

# ---- tables


def _defaults(name: str, prefix: str) -> dict[str, str]:
    nodes = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text())["defaults"]
    return {prefix + g: o for node in nodes if isinstance(node, dict) for g, o in node.items()}


def test_the_table_of_options_is_what_is_on_disk() -> None:
    listed, defaults, group = set(), {}, ""
    for first, option, *_ in table(OPTIONS, "group | option"):
        group = word(first) if first else group
        listed.add((group, word(option)))
        if "(default)" in option:
            defaults[group] = word(option)
    groups = {name for name in groups_in(conf_dir()) if not name.startswith("hydra")}
    on_disk = {(g, path.stem) for g in groups for path in (conf_dir() / g).glob("*.yaml")}

    assert listed == on_disk
    chosen = _defaults("train", "") | _defaults("model/gpt_tiny", "model/")
    assert defaults == {group: o for group, o in chosen.items() if group in groups and o}


def test_the_root_keys_have_the_defaults_of_the_configuration() -> None:
    shown = {word(key): yaml.safe_load(value) for key, value, _ in table(OPTIONS, "root key")}
    on_disk = yaml.safe_load((conf_dir() / "train.yaml").read_text())
    del on_disk["defaults"]
    assert shown == on_disk


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_the_guide_has_every_group_its_folder_and_its_signatures() -> None:
    rows = {word(row[0]): row[1:] for row in table(EXTENDING, "group | Python file")}
    folders = {group: f"xftrain/{group}/" for group in GROUPS}
    assert {group: re.findall(r"`(\S+)`", row[0])[0] for group, row in rows.items()} == folders
    for group, (_, positional, methods) in rows.items():
        for name in option_names(group):
            option = load_class(group, name)
            assert _positional(option) == re.findall(r"\w+", positional.replace("none", "")), name
            for method, arguments in re.findall(r"`(\w+)\(([\w, ]+)\)", methods):
                if hasattr(option, method):
                    is_static = isinstance(inspect.getattr_static(option, method), staticmethod)
                    found = _positional(getattr(option, method))[not is_static :]
                    assert found == arguments.split(", "), (name, method)


def test_the_exit_codes_are_those_of_the_command() -> None:
    listed = [row[0] for row in table(RESULTS, "exit code")]
    assert listed == re.findall(r"\b\d+\b", cli.__doc__ or "")


def test_a_backend_with_a_row_trains_where_it_says() -> None:
    rows = {word(row[0]): row for row in table(OPTIONS, "| `causal`")}
    backends = {backend.name: backend for backend in all_backends()}
    assert rows and rows.keys() <= backends.keys()
    for name, row in rows.items():
        runs = [
            not backends[name].unsupported(*cell.call("cpu", head_dim=16))
            for cell in CELLS
            if cell.backend == name
        ]
        assert set(runs) == {"CPU" in row[-1]}, name


def test_folding_has_the_limits_of_the_page() -> None:
    rows = table(OPTIONS, "`model.num_heads`")
    assert rows
    for num_heads, half, single in rows:
        bias = Alibi().build(int(num_heads), None)
        for dtype, text in ((torch.bfloat16, half), (torch.float16, half), (torch.float32, single)):
            longest = int(text.removesuffix(" tokens"))
            assert not folding_reasons(bias, longest, dtype)
            assert folding_reasons(bias, longest + 1, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the answers are those on a CPU")
@pytest.mark.parametrize(("overrides", "answer"), table(OPTIONS, "command | answer"))
def test_what_is_refused_is_refused_in_these_words(
    tmp_path: Path, overrides: str, answer: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        xftrain.run(xftrain.compose(*word(overrides).split()), tmp_path)
    assert _without_later_options(str(refusal.value), answer) == answer


def _without_later_options(message: str, page: str) -> str:
    """The message, with the options that the page lists and without others, such as a new one."""
    options = re.compile(r"(?<=choose one of )[a-z]\w*(, \w+)*")
    found, shown = options.search(message), options.search(page)
    if found is None or shown is None:
        return message
    assert set(shown[0].split(", ")) <= set(found[0].split(", "))
    return message.replace(found[0], shown[0])


# ---- the guide's backend


def test_the_guides_backend_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "einsum.py"
    file.write_text(files(EXTENDING)["xftrain/model/attn/einsum.py"])
    spec = importlib.util.spec_from_file_location("einsum", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "einsum", module)  # dataclass looks its annotations up there
    spec.loader.exec_module(module)
    monkeypatch.setattr(test_parity, "backend_named", lambda name: module.Einsum())
    cells = [c for c in CELLS if (c.backend, c.bias) == ("naive", "alibi-window")]
    assert len(cells) > 9
    for cell in cells:
        test_parity.check(cell, "cpu", head_dim=16)


# ---- what is elsewhere, and what is not


def test_the_first_block_is_the_two_commands() -> None:
    first = re.search(r"^```(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert first is not None and first[1] == "bash\n./scripts/train\n./scripts/test\n"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    found = re.findall(r"\]\(([^)\s]+)\)", PAGES[name])
    targets = [target.partition("#") for target in found if not target.startswith("https://")]
    for path, _, anchor in targets:
        target = (ROOT / name).parent.joinpath(path) if path else ROOT / name
        assert target.exists(), f"{name} links to {path}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{name} links to {path}#{anchor}"


def test_every_page_is_linked_from_the_readme_and_begins_with_its_purpose() -> None:
    assert len(README.splitlines()) <= 250
    for name in set(PAGES) - {"README.md"}:
        assert f"]({name})" in README, name
        assert re.match(r"# .+\n\nThis page [^#|`]*?\.\n\n", PAGES[name]), name


def test_the_measured_results_of_the_readme_are_in_their_records() -> None:
    for _, ours, others, link in table(README, "measured"):
        path = re.findall(r"\(([^)#]+)", link)[0]
        record = (ROOT / path).read_text()
        figures = re.findall(r"\d[\d,.]*\d", f"{ours} {others}")
        assert figures
        assert [figure for figure in figures if figure not in record] == []


def test_the_workflow_does_what_every_change_must_pass() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    (job,) = jobs.values()
    assert job["timeout-minutes"] == 90
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_quoted_figures_are_those_of_the_record() -> None:
    quoted = [
        line for line in BENCHMARK.splitlines() if re.search(r"\| [\d,]+ \| [\d.]+ \|$", line)
    ]
    record = (ROOT / "docs/benchmarks/2026-11-22-h100-counting.md").read_text().splitlines()
    assert quoted
    assert set(quoted) <= set(record)


@pytest.mark.long
def test_the_results_are_those_of_the_committed_rows() -> None:
    (folder,) = set(re.findall(r"\((benchmarks/\S+)/report.md\)", BENCHMARK))
    command = [sys.executable, "scripts/readme_results.py", f"docs/{folder}", "--check"]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == 0, "run scripts/readme_results.py and commit the page"


def test_what_is_planned_is_not_there() -> None:
    planned = re.findall(r"^- planned: (.*(?:\n  .*)*)", README, re.MULTILINE)
    words = " ".join(planned)
    configurations = re.findall(r"`--config-name (\w+)`", words)
    options = re.findall(r"`(\w+)=(\w+)`", words)
    assert configurations or options
    absent = [f"{name}.yaml" for name in configurations]
    absent += [f"{group}/{name}.yaml" for group, name in options]
    assert [name for name in absent if (conf_dir() / name).exists()] == []

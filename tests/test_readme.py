"""README.md and docs/adding.md say what is so: their commands, examples, tables and links."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

import xftrain
from tests.attention import test_parity
from tests.attention.cells import CELLS
from xftrain import cli, sweep_record
from xftrain.attention.backends.auto import all_backends
from xftrain.attention.biases.alibi import Alibi
from xftrain.attention.folding import folding_reasons
from xftrain.config import validate
from xftrain.errors import ConfigError
from xftrain.overrides import all_groups, groups_in, normalise_argv
from xftrain.registry import PACKAGES, conf_dir, load
from xftrain.registry import names as registry_names

ROOT = Path(__file__).parents[1]
DOCS = {name: (ROOT / name).read_text() for name in ("README.md", "docs/adding.md")}
README, ADDING = DOCS.values()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[str]:
    """The lines of the bash blocks, without comments."""
    lines = [line for block in _blocks(text, "bash") for line in block.splitlines()]
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def _files(text: str) -> dict[str, str]:
    """The blocks that begin with a comment of their own path."""
    blocks = _blocks(text, "python") + _blocks(text, "yaml")
    found = {re.match(r"# (\S+\.(?:py|yaml))\n", block): block for block in blocks}
    return {match[1]: block for match, block in found.items() if match}


def _table(text: str, header: str) -> list[list[str]]:
    """The rows below the line that begins with `header`, cell by cell."""
    _, found, rest = text.partition(f"\n| {header}")
    assert found, header
    rows = []
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _word(cell: str) -> str:
    """What a cell has between backquotes."""
    return cell.split("`")[1]


# ---- commands


# Of commands that train, in the tests that run them all.
SMALL = ("max_steps=1", "batch_tokens=64", "model.num_layers=1", "model.vocab_size=null")
SMALL += ("compile=false",)  # which costs half a minute, and has a test of its own
# What has tests of its own: a checkpoint, several processes, many trials.
ELSEWHERE = ("ckpt=", "trainer=ddp", "hparams_search=", "hydra/launcher=")


def _composes(argv: list[str]) -> None:
    """Each job of a command has a configuration without a fault; the files it names are made."""
    flags = get_args_parser().parse_intermixed_args(argv)
    if [word for word in flags.overrides if word.startswith(f"{sweep_record.RESUME}=")]:
        assert len(flags.overrides) == 1  # what it runs is in the folder
        return
    own = [Path(flags.config_dir)] if flags.config_dir else []
    typed = normalise_argv(flags.overrides, all_groups(*own))
    for path in [word.partition("=")[2] for word in typed if word.startswith("ckpt=")]:
        if path != "auto":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    parsed = OverridesParser.create().parse_overrides(typed)
    values = [
        [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
        if item.is_sweep_override()
        else [str(item.input_line)]
        for item in parsed
    ]
    assert flags.multirun == any(item.is_sweep_override() for item in parsed)
    for job in product(*values):
        name = flags.config_name or "train"
        validate(xftrain.compose(*job, config_name=name, config_dir=flags.config_dir))
    shows = flags.cfg or flags.help
    if name == "train" and not shows and not any(w.startswith(ELSEWHERE) for w in typed):
        small = xftrain.compose(*job, *SMALL, config_dir=flags.config_dir)
        assert xftrain.run(small, Path("small"))["status"] == "completed"


def _check(command: str) -> None:
    words = shlex.split(command)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match words:
        case [script] if script.startswith("./scripts/"):
            assert os.access(ROOT / script, os.X_OK)
        case ["source", ".venv/bin/activate"]:
            assert "venv=$root/.venv\n" in (ROOT / "scripts/setup.sh").read_text()
        case ["xftrain", *argv]:
            assert project["scripts"] == {"xftrain": "xftrain.cli:main"}
            _composes(argv)
        case ["python", "-m", "xftrain", *argv]:
            _composes(argv)
        case ["python", "-m", "pytest", *paths, "-k", _] | [
            "python",
            "-m",
            "pytest",
            *paths,
            "--faults",
        ]:
            assert all((ROOT / path).exists() for path in paths)
        case ["python", "scripts/compare_reports.py", *folders]:
            assert len(folders) == 2 and (ROOT / words[1]).is_file()
        case ["python", script, *argv]:
            source = (ROOT / script).read_text()
            assert all(f'"{word}"' in source for word in argv if word.startswith("--"))
        case ["pip", "install", "-c", constraints, target]:
            assert (ROOT / constraints).is_file()
            extra = target.removeprefix(".").strip("[]")
            assert not extra or extra in project["optional-dependencies"]
        case ["tensorboard", "--logdir", "outputs"]:
            assert any(name.startswith("tensorboard") for name in project["dependencies"])
        case _:
            pytest.fail(f"no check for: {command}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: some text, and the README's own files."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text(
        "".join(f"line {number} of a text\n" for number in range(4000))
    )
    for name, text in _files(README).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", _commands(README))
def test_every_command_of_the_readme_runs(folder: Path, command: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(folder))  # as `python -m` does
    _check(command)


def test_every_command_of_the_guide_is_right(enlarged: Path) -> None:
    commands = _commands(ADDING)
    trained = [command for command in commands if "xftrain " in command]
    for command in set(commands) - set(trained):
        _check(command)
    # einsum exists in the enlarged copy alone
    assert [_kernel(_run(command, enlarged, path=enlarged)) for command in trained] == ["einsum"]


def test_a_wrong_command_would_be_noticed(folder: Path) -> None:
    for wrong in ("model.attn=xfomers", "model.dimension=3", "model.attn=naive,sdpa", "seq=0"):
        with pytest.raises((ConfigError, AssertionError)):
            _check(f"python -m xftrain {wrong}")
    with pytest.raises(pytest.fail.Exception, match="no check for"):
        _check("make all")


def test_the_first_block_is_the_two_commands() -> None:
    first = re.search(r"^```(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert first is not None and first[1] == "bash\n./scripts/train\n./scripts/test\n"


# ---- commands that train, as they stand, but for fewer and smaller steps


def _run(command: str, folder: Path, *more: str, path: Path = ROOT) -> str:
    """What the command prints."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    small = [] if sweep_record.RESUME in command else ["batch_tokens=128", "max_steps=3"]
    process = subprocess.run(
        [*words, *small, *filter(None, more)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def _command(pattern: str) -> str:
    (found,) = [command for command in _commands(README) if re.search(pattern, command)]
    return found


def _kernel(output: str) -> str:
    found = re.search(r"attention kernel: (.*)", output)
    assert found is not None
    return found[1]


def _result(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "completed"
    return result


def _shape(line: str) -> str:
    """A line of the log without its figures."""
    return re.sub(r"outputs/\S+|[\d.,:]*\d", "#", line)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The run that the README continues, and what it printed."""
    folder = tmp_path_factory.mktemp("first")
    # best.ckpt comes with a validation, and as soon as saving takes little of the time
    more = ("trainer.val_check_interval=3", "callbacks.checkpoint.every_n_steps=2")
    yield folder, _run(_command("hydra.run.dir=outputs/first$"), folder, *more)


def test_a_run_leaves_the_files_and_prints_the_lines_of_the_readme(
    first_run: tuple[Path, str],
) -> None:
    run_dir = first_run[0] / "outputs" / "first"
    listed = [_word(row[0]) for row in _table(README, "file | what it holds")]
    there = {path for name in listed for path in run_dir.glob(name.rstrip("/"))}
    missing = [name for name in listed if not list(run_dir.glob(name.rstrip("/")))]
    unlisted = {p for p in run_dir.iterdir() if p not in there and p.name != "checkpoints"}
    assert (missing, unlisted) == ([], set())

    keys = [_word(row[0]) for row in _table(README, "key of `result.json`")]
    assert keys == list(_result(run_dir))

    shown, said = (
        [_shape(line) for line in text.strip().splitlines()[-4:]]
        for text in (_blocks(README, "text")[0], first_run[1])
    )
    assert shown == said


def test_a_run_can_be_continued(
    first_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(first_run[0])
    caplog.set_level("INFO")
    folders = {
        "max_steps=800 ckpt=auto": Path("outputs/first"),
        "max_steps=800 ckpt=.*/last.ckpt": Path("outputs/other"),
    }
    for steps, (pattern, folder) in enumerate(folders.items(), start=4):
        overrides = shlex.split(_command(pattern))[3:]
        assert ("hydra.run.dir=outputs/first" in overrides) == (folder.name == "first")
        cfg = xftrain.compose(*overrides, "batch_tokens=128", f"max_steps={steps}")
        assert xftrain.run(cfg, folder)["steps"] == steps
    assert "going on from outputs/first/checkpoints/last.ckpt, step 3" in caplog.text
    assert torch.load("outputs/first/checkpoints/last.ckpt")["global_step"] == 4
    for pattern in ("sample ckpt=.*/last.ckpt$", "sample ckpt=.*/last.ckpt .prompt="):
        overrides = shlex.split(_command(pattern))[5:]
        sampled = xftrain.compose(*overrides, "num_tokens=4", config_name="sample")
        xftrain.run(sampled, Path("outputs/sampled"))
        assert " | " in Path("outputs/sampled/sample.txt").read_text()


@pytest.mark.slow
def test_the_sweep_runs(folder: Path) -> None:
    _run(_command(" -m model.attn=naive,sdpa model.ffn"), folder)
    results = [_result(path.parent) for path in folder.glob("outputs/sweep/*/result.json")]
    assert sorted(" ".join(result["overrides"][:2]) for result in results) == [
        f"model/attn={attn} model/ffn={ffn}"
        for attn in ("naive", "sdpa")
        for ffn in ("gelu", "swiglu")
    ]
    summary = (folder / "outputs" / "sweep" / "summary.csv").read_text()
    before = {path: path.stat().st_mtime for path in folder.glob("outputs/sweep/*/result.json")}
    _run(_command(f"{sweep_record.RESUME}="), folder, "")
    assert before == {path: path.stat().st_mtime for path in before}  # all were completed
    assert len(summary.splitlines()) == 5


def test_the_readers_own_option_runs(folder: Path) -> None:
    said = _run(_command("--config-dir own model.bias"), folder)
    assert "bias=custom" in said
    assert "folded ALiBi" in _kernel(said)
    assert _kernel(_run(_command("--config-dir own model.attn"), folder)) == "matmul"


@pytest.mark.slow
def test_the_readers_own_backend_is_compared_with_float64(folder: Path) -> None:
    others = [f"callbacks.{name}=null" for name in ("doctor", "packed", "grouped", "alibi")]
    others += ["callbacks.attention_sweep=null", "callbacks.train_sweep=null"]
    small = ["callbacks.parity.length=32", "callbacks.parity.heads=[mha]"]
    _run(_command("--config-name benchmark model.attn=matmul"), folder, *others, *small)
    (report,) = folder.glob("outputs/*/*/report.md")
    rows = [row for row in report.read_text().splitlines() if row.startswith("| Matmul")]
    assert "10 of 10" in rows[0]


def test_the_notebook_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [b for b in _blocks(README, "python") if not b.startswith("# ")]
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"naive \d\S* outputs/\S+\n", capsys.readouterr().out)


# ---- the guide's backend


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the guide's backend in it."""
    folder = tmp_path_factory.mktemp("enlarged")
    for name in ("xftrain", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name, text in _files(ADDING).items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return folder


def test_the_guides_backend_is_right(enlarged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = enlarged / "xftrain" / "attention" / "backends" / "einsum.py"
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


# ---- tables


def _defaults(name: str, prefix: str) -> dict[str, str]:
    nodes = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text())["defaults"]
    return {prefix + g: o for node in nodes if isinstance(node, dict) for g, o in node.items()}


def test_the_table_of_options_is_what_is_on_disk() -> None:
    listed, defaults, group = set(), {}, ""
    for first, option, *_ in _table(README, "group | option"):
        group = _word(first) if first else group
        listed.add((group, _word(option)))
        if "(default)" in option:
            defaults[group] = _word(option)
    groups = {name for name in groups_in(conf_dir()) if not name.startswith("hydra")}
    on_disk = {(g, path.stem) for g in groups for path in (conf_dir() / g).glob("*.yaml")}

    assert listed == on_disk
    chosen = _defaults("train", "") | _defaults("model/gpt_tiny", "model/")
    assert defaults == {group: o for group, o in chosen.items() if group in groups and o}


def test_the_root_keys_have_the_defaults_of_the_configuration() -> None:
    shown = {_word(key): yaml.safe_load(value) for key, value, _ in _table(README, "root key")}
    on_disk = yaml.safe_load((conf_dir() / "train.yaml").read_text())
    del on_disk["defaults"]
    assert shown == on_disk


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_the_guide_has_every_group_its_folder_and_its_signatures() -> None:
    rows = {_word(row[0]): row[1:] for row in _table(ADDING, "group | Python file")}
    folders = {
        group: [name.replace(".", "/") + "/" for name in packages]
        for group, packages in PACKAGES.items()
    }
    assert {group: re.findall(r"`(\S+)`", row[0]) for group, row in rows.items()} == folders
    for group, (_, positional, methods) in rows.items():
        for name in registry_names(group):
            option = load(group, name)
            assert _positional(option) == re.findall(r"\w+", positional.replace("none", "")), name
            for method, arguments in re.findall(r"`(\w+)\(([\w, ]+)\)", methods):
                if hasattr(option, method):
                    assert _positional(getattr(option, method))[1:] == arguments.split(", "), name


def test_the_exit_codes_are_those_of_the_command() -> None:
    listed = [row[0] for row in _table(README, "exit code")]
    assert listed == re.findall(r"\b\d+\b", cli.__doc__ or "")


def test_every_backend_has_a_row_and_trains_where_it_says() -> None:
    rows = {_word(row[0]): row for row in _table(README, "| `causal`")}
    backends = {backend.name: backend for backend in all_backends()}
    assert rows.keys() == backends.keys()
    cpu = torch.device("cpu")
    for name, row in rows.items():
        runs = [
            not backends[name].unsupported(cell.facts(), cell.shape(16), cell.dtype, cpu)
            for cell in CELLS
            if cell.backend == name
        ]
        assert set(runs) == {"CPU" in row[-1]}, name


def test_folding_has_the_limits_of_the_readme() -> None:
    rows = _table(README, "`model.num_heads`")
    assert rows
    for num_heads, half, single in rows:
        bias = Alibi().build(int(num_heads), None)
        for dtype, text in ((torch.bfloat16, half), (torch.float16, half), (torch.float32, single)):
            longest = int(text.removesuffix(" tokens"))
            assert not folding_reasons(bias, longest, dtype)
            assert folding_reasons(bias, longest + 1, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the answers are those on a CPU")
@pytest.mark.parametrize(("overrides", "answer"), _table(README, "command | answer"))
def test_what_is_refused_is_refused_in_these_words(
    tmp_path: Path, overrides: str, answer: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        xftrain.run(xftrain.compose(*_word(overrides).split()), tmp_path)
    assert str(refusal.value) == answer


# ---- what is elsewhere, and what is not


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_to_files(name: str) -> None:
    found = re.findall(r"\]\(([^)#]+)\)", DOCS[name])
    targets = [target for target in found if not target.startswith("https://")]
    assert targets
    for target in targets:
        assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


def test_quoted_figures_are_those_of_the_record() -> None:
    quoted = [line for line in README.splitlines() if re.search(r"\| [\d,]+ \| [\d.]+ \|$", line)]
    record = (ROOT / "docs/benchmarks/2026-11-22-h100-counting.md").read_text().splitlines()
    assert quoted
    assert set(quoted) <= set(record)


def test_the_results_are_those_of_the_committed_rows() -> None:
    (folder,) = set(re.findall(r"\((docs/benchmarks/\S+)/report.md\)", README))
    command = [sys.executable, "scripts/readme_results.py", folder, "--check"]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == 0, "run scripts/readme_results.py and commit the README"


def test_what_is_planned_is_not_there() -> None:
    planned = re.findall(r"^- planned: (.*(?:\n  .*)*)", README, re.MULTILINE)
    words = " ".join(planned)
    configurations = re.findall(r"`--config-name (\w+)`", words)
    options = re.findall(r"`(\w+)=(\w+)`", words)
    assert configurations or options
    absent = [f"{name}.yaml" for name in configurations]
    absent += [f"{group}/{name}.yaml" for group, name in options]
    assert [name for name in absent if (conf_dir() / name).exists()] == []

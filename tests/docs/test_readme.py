"""The commands and examples of README.md, CONTRIBUTING.md and docs/ do what the pages say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product, takewhile
from pathlib import Path

import pytest
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

import xftrain
from tests.docs.corpora import write_corpora
from tests.page_commands import kernel_in, printed_by, result_in, without_figures
from tests.pages import (
    COMMANDS,
    EXTENDING,
    GUIDE,
    OF_THE_PACKAGE,
    OPTIONS,
    PAGES,
    README,
    RESULTS,
    ROOT,
    blocks,
    files,
    table,
    word,
)
from xftrain.config.compose import validate
from xftrain.config.overrides import all_groups, normalize_argv
from xftrain.errors import ConfigError
from xftrain.multirun import record

# Of commands that train, in the tests that run them all.
SMALL = ("max_steps=1", "batch_tokens=64", "model.num_layers=2", "model.vocab_size=null")
SMALL += ("compile=false",)  # which costs half a minute, and has a test of its own
# What has tests of its own: a checkpoint, other weights, several processes, many trials.
ELSEWHERE = ("ckpt=", "init_from=", "trainer=ddp", "hparams_search=", "hydra/launcher=", "logger=")


def _composes(argv: list[str]) -> None:
    """Each job of a command has a configuration without a fault; the files it names are made."""
    flags = get_args_parser().parse_intermixed_args(argv)
    for extra in ("wandb", "mlflow"):
        if f"logger=[default,{extra}]" in flags.overrides and find_spec(extra) is None:
            pytest.skip(f"the extra {extra} is not installed")
    if [word for word in flags.overrides if word.startswith(f"{record.RESUME_KEY}=")]:
        assert len(flags.overrides) == 1  # what it runs is in the folder
        return
    own = [Path(flags.config_dir)] if flags.config_dir else []
    typed = normalize_argv(flags.overrides, all_groups(*own))
    for path in [w.partition("=")[2] for w in typed if w.startswith("ckpt=")]:
        if path != "auto":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    for path in [w.partition("=")[2] for w in typed if w.startswith("init_from=")]:
        Path(path).mkdir(parents=True)
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
        # of few weights, which are initialized on the CPU; 12 heads of 8
        narrow = ["model.dim=96"] if any("124m" in word for word in typed) else []
        small = xftrain.compose(*job, *SMALL, *narrow, config_dir=flags.config_dir)
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
            assert project["scripts"] == {"xftrain": "xftrain.launch.cli:main"}
            _composes(argv)
        case ["python", "-m", "xftrain", *argv]:
            _composes(argv)
        case ["python", "-m", "pytest", *argv]:
            paths = [*takewhile(lambda word: not word.startswith("-"), argv)]
            assert paths and all((ROOT / path).exists() for path in paths)
            source = (ROOT / "tests/conftest.py").read_text()
            assert all(f'"{word}"' in source for word in argv if word.startswith("--"))
        case ["mypy"] | ["ruff", "check"] | ["ruff", "format", "--check"]:
            assert f"\ncheck {command}\n" in (ROOT / "scripts/test").read_text()
        case ["pip", "install", "pre-commit"] | ["pre-commit", "install"]:
            assert (ROOT / ".pre-commit-config.yaml").is_file()
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
    """The working directory of a reader: some text, and the files of the examples."""
    write_corpora(tmp_path)
    for name, text in files(*PAGES.values()).items():
        if name.startswith(OF_THE_PACKAGE):
            continue
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the guide's backend in it."""
    folder = tmp_path_factory.mktemp("enlarged")
    for name in ("xftrain", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name, text in files(EXTENDING).items():
        if not name.startswith(OF_THE_PACKAGE):
            continue
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_pages_runs(folder: Path, command: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(folder))  # as `python -m` does
    _check(command)


def test_every_command_of_the_guide_is_right(enlarged: Path) -> None:
    trained = [command for command in GUIDE if "xftrain " in command]
    for command in set(GUIDE) - set(trained):
        _check(command)
    # einsum exists in the enlarged copy alone
    assert [kernel_in(printed_by(command, enlarged, path=enlarged)) for command in trained] == [
        "einsum"
    ]


def test_a_wrong_command_would_be_noticed(folder: Path) -> None:
    for wrong in ("model.attn=xfomers", "model.dimension=3", "model.attn=naive,sdpa", "seq=0"):
        with pytest.raises((ConfigError, AssertionError)):
            _check(f"python -m xftrain {wrong}")
    with pytest.raises(pytest.fail.Exception, match="no check for"):
        _check("make all")


# ---- commands that train, as they stand, but for fewer and smaller steps


def _command(pattern: str) -> str:
    (found,) = [command for command in COMMANDS if re.search(pattern, command)]
    return found


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The run that the README continues, and what it printed."""
    folder = tmp_path_factory.mktemp("first")
    # best.ckpt comes with a validation, and as soon as saving takes little of the time
    more = ("trainer.val_check_interval=3", "callbacks.checkpoint.every_n_steps=2")
    yield folder, printed_by(_command("hydra.run.dir=outputs/first max_steps=10$"), folder, *more)


def test_a_run_leaves_the_files_and_prints_the_lines_of_the_pages(
    first_run: tuple[Path, str],
) -> None:
    run_dir = first_run[0] / "outputs" / "first"
    listed = [word(row[0]) for row in table(RESULTS, "file | what it holds")]
    there = {path for name in listed for path in run_dir.glob(name.rstrip("/"))}
    missing = [name for name in listed if not list(run_dir.glob(name.rstrip("/")))]
    unlisted = {p for p in run_dir.iterdir() if p not in there and p.name != "checkpoints"}
    assert (missing, unlisted) == ([], set())

    keys = [word(row[0]) for row in table(RESULTS, "key of `result.json`")]
    assert keys == list(result_in(run_dir))

    shown, said = (
        [without_figures(line) for line in text.strip().splitlines()[-4:]]
        for text in (blocks(README, "text")[0], first_run[1])
    )
    assert shown == said


def test_a_run_can_be_continued(
    first_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(first_run[0])
    caplog.set_level("INFO")
    folders = {
        "max_steps=400 ckpt=auto": Path("outputs/first"),
        "max_steps=400 ckpt=.*/last.ckpt": Path("outputs/other"),
    }
    for steps, (pattern, folder) in enumerate(folders.items(), start=4):
        overrides = shlex.split(_command(pattern))[3:]
        assert ("hydra.run.dir=outputs/first" in overrides) == (folder.name == "first")
        cfg = xftrain.compose(*overrides, "batch_tokens=128", f"max_steps={steps}")
        assert xftrain.run(cfg, folder)["steps"] == steps
    assert "resuming from outputs/first/checkpoints/last.ckpt, step 3" in caplog.text
    assert torch.load("outputs/first/checkpoints/last.ckpt")["global_step"] == 4
    for pattern in ("sample ckpt=.*/last.ckpt$", "sample ckpt=.*/last.ckpt .prompt="):
        overrides = shlex.split(_command(pattern))[5:]
        sampled = xftrain.compose(*overrides, "num_tokens=4", config_name="sample")
        xftrain.run(sampled, Path("outputs/sampled"))
        assert "continuation of the model:\n" in Path("outputs/sampled/sample.txt").read_text()


@pytest.mark.long
def test_the_resumed_run_of_the_readme_trains(tmp_path: Path, monkeypatch) -> None:
    # the first run had solved its task, and the second ended where it began
    monkeypatch.chdir(tmp_path)
    steps = []
    for pattern in ("outputs/first max_steps=10$", "outputs/first max_steps=400 ckpt=auto"):
        overrides = shlex.split(_command(pattern))[3:]
        steps.append(xftrain.run(xftrain.compose(*overrides), Path("outputs/first"))["steps"])
    assert steps[0] == 10 < steps[1]


@pytest.mark.long
def test_the_sweep_runs(folder: Path) -> None:
    printed_by(_command(" -m model.attn=naive,sdpa model.ffn"), folder)
    results = [result_in(path.parent) for path in folder.glob("outputs/sweep/*/result.json")]
    assert sorted(" ".join(result["overrides"][:2]) for result in results) == [
        f"model/attn={attn} model/ffn={ffn}"
        for attn in ("naive", "sdpa")
        for ffn in ("gelu", "swiglu")
    ]
    summary = (folder / "outputs" / "sweep" / "summary.csv").read_text()
    before = {path: path.stat().st_mtime for path in folder.glob("outputs/sweep/*/result.json")}
    printed_by(_command(f"{record.RESUME_KEY}="), folder, "")
    assert before == {path: path.stat().st_mtime for path in before}  # all were completed
    assert len(summary.splitlines()) == 5


def test_the_readers_own_option_runs(folder: Path) -> None:
    said = printed_by(_command("--config-dir own model.bias"), folder)
    assert "bias=custom" in said
    assert "folded ALiBi" in kernel_in(said)
    assert kernel_in(printed_by(_command("--config-dir own model.attn"), folder)) == "matmul"


@pytest.mark.long
def test_the_readers_own_backend_is_compared_with_float64(folder: Path) -> None:
    others = [f"callbacks.{name}=null" for name in ("doctor", "packed", "grouped", "alibi")]
    others += ["callbacks.attention_sweep=null", "callbacks.train_sweep=null"]
    small = ["callbacks.parity.length=32", "callbacks.parity.heads=[mha]"]
    printed_by(_command("--config-name benchmark model.attn=matmul"), folder, *others, *small)
    (report,) = folder.glob("outputs/*/*/report.md")
    rows = [row for row in report.read_text().splitlines() if row.startswith("| Matmul")]
    assert "10 of 10" in rows[0]


def test_the_notebook_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [b for b in blocks(OPTIONS, "python") if not b.startswith("# ")]
    exec(compile(example, "docs/options.md", "exec"), {})
    assert re.fullmatch(r"naive \d\S* outputs/\S+\n", capsys.readouterr().out)

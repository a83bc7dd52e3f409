"""How a command ends: its exit code, and the one sentence that it says."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest

import xftrain
from tests.command_line import one_sentence
from xftrain.config.overrides import all_groups, normalize
from xftrain.config.registry import option_names
from xftrain.errors import ConfigError, RunError


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_help_lists_groups_and_options(command):
    ended = command("--help")

    assert ended.code == 0
    listed = ended.out.partition("\nmodel/attn:\n")[2].splitlines()[
        : len(option_names("model/attn"))
    ]
    assert [line.split()[0] for line in listed] == option_names("model/attn")
    assert "Dotted and slashed mean the same" in ended.out


def test_a_run_gets_the_configuration_and_its_folder(command, runner, tmp_path):
    ended = command("model.attn=naive", "seq=32", "hydra.run.dir=here")

    assert (ended.code, ended.err) == (0, "")
    assert runner.calls == [(32, tmp_path / "here")]
    assert sys.argv[1:] == ["model/attn=naive", "seq=32", "hydra.run.dir=here"]
    assert (tmp_path / "here" / "xftrain.log").is_file()


def test_runs_of_the_same_second_have_folders_of_their_own(command, runner, tmp_path):
    place = "hydra.run.dir=${xf.new_folder:outputs/now}"
    for seq in (8, 16, 32):
        assert command(f"seq={seq}", place).code == 0

    folders = [tmp_path / "outputs" / name for name in ("now", "now-2", "now-3")]
    assert runner.calls == list(zip((8, 16, 32), folders, strict=True))
    assert sorted((tmp_path / "outputs").iterdir()) == folders


def test_that_is_how_folders_are_named_where_none_is_given(command, runner, tmp_path):
    assert "dir: ${xf.new_folder:outputs/" in command("--cfg", "hydra").out
    assert list(tmp_path.iterdir()) == []
    assert [command("seq=8").code for _ in range(3)] == [0, 0, 0]
    assert len({folder for _, folder in runner.calls}) == 3
    assert sorted(folder for _, folder in runner.calls) == sorted(tmp_path.glob("outputs/*/*"))


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("seq=abc", "seq must be an integer >= 1, got 'abc'."),
        ("model.attn=xfomers", "model.attn=xfomers: no such option; choose one of "),
        ("--config-name=trian", "--config-name trian: no such configuration; choose one of "),
        ("--config-dir=nowhere", "Additional config directory '"),
        (
            "--config-name=doctor model.attn=naive",
            "model.attn is not part of the configuration that --config-name chose.",
        ),
        ("--nope", "unrecognized arguments: --nope; --hydra-help lists the flags."),
        ("--cfg=nope", "argument --cfg/-c: invalid choice: 'nope' (choose from "),
    ],
)
def test_what_cannot_be_composed_ends_with_2_and_leaves_nothing(command, tmp_path, typed, sentence):
    assert one_sentence(command(*typed.split()), 2).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", ["completed", "stopped", "failed"])
def test_a_refusal_leaves_the_result_of_a_run_that_has_ended(command, tmp_path, status):
    record = {"status": status, "error": None, "overrides": [], "run_dir": str(tmp_path)}
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert command("seq=-1", "hydra.run.dir=.").code == 2
    assert (_result(tmp_path)["status"] == status) == (status != "failed")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("seq=-1", "seq must be an integer >= 1, got -1."),
        ("~model.attn", "model.attn is missing; choose one of "),
        ("model.attn=[naive,sdpa]", "model.attn takes one option, got [naive,sdpa]; "),
        ("+model.attn.nope=1", "model.attn.nope is not a key of model.attn=auto, "),
        (
            "data=text",
            "data.path has no value; set it to a string or a list of values, each a string.",
        ),
    ],
)
def test_what_the_checks_refuse_ends_with_2_and_says_so_in_the_run_folder(
    command, runner, tmp_path, typed, sentence
):
    said = one_sentence(command(typed, "hydra.run.dir=here"), 2)

    assert said.startswith(sentence)
    assert runner.calls == []
    assert _result(tmp_path / "here") == {
        "status": "refused",
        "error": said,
        "overrides": [normalize(typed, all_groups())],
        "run_dir": str(tmp_path / "here"),
    }
    assert said in (tmp_path / "here" / "xftrain.log").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("model.attn=flex cannot run on cpu."), 2), (RunError("the disk is full."), 1)],
)
def test_a_sentence_of_the_runner_is_all_that_is_said(command, runner, error, code):
    runner.errors[64] = error

    assert one_sentence(command(), code) == str(error)


def test_any_other_error_ends_with_1_and_its_traceback_is_in_the_log(command, runner, tmp_path):
    runner.errors[64] = ValueError("no luck\nat all")

    said = one_sentence(command("hydra.run.dir=here"), 1)

    log = tmp_path / "here" / "xftrain.log"
    assert said == f"ValueError: no luck (traceback in {log})"
    assert "Traceback" in log.read_text() and "at all" in log.read_text()


def test_a_traceback_is_shown_where_there_is_no_log(command, runner):
    runner.errors[64] = ValueError("no luck")

    ended = command("hydra.job_logging=stdout")

    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.endswith("xftrain: ValueError: no luck\n")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_variable_of_hydra_shows_the_traceback_and_is_put_back(
    command, runner, monkeypatch, wanted
):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if wanted:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    before = dict(os.environ)
    runner.errors[64] = RunError("the disk is full.")

    ended = command()

    assert ended.code == 1
    assert ("Traceback" in ended.err) == wanted
    assert ended.err.endswith("xftrain: the disk is full.\n")
    assert dict(os.environ) == before


def test_a_folder_that_cannot_be_made_ends_with_1(command, tmp_path):
    (tmp_path / "file").touch()

    said = one_sentence(command("hydra.run.dir=file/run"), 1)

    assert "file/run" in said


def _as_lightning_does() -> SystemExit:
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    except SystemExit as stop:
        return stop


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), _as_lightning_does()])
def test_an_interrupt_ends_with_130(command, runner, interrupt):
    runner.errors[64] = interrupt

    assert one_sentence(command(), 130) == "interrupted."


def test_a_stop_by_sigterm_ends_with_143(command, runner):
    runner.errors[64] = SystemExit()  # as Lightning's SIGTERMException

    assert one_sentence(command(), 143) == "stopped by SIGTERM."


def test_any_other_exit_keeps_its_code(command, runner):
    runner.errors[64] = SystemExit(7)

    ended = command()
    assert (ended.code, ended.err) == (7, "")


# ---- sweeps


# ---- flags


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--exp"])
def test_a_rerun_is_refused_since_it_unpickles(command, tmp_path, flag):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "job.pickle").write_bytes(pickle.dumps(Bomb()))

    assert "refused" in one_sentence(command(flag, "job.pickle"), 2)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("flag", ["--config-dir=own", "-cd own", "--config-d own"])
def test_groups_of_the_user_can_be_dotted_as_well(command, runner, tmp_path, flag):
    option = tmp_path / "own" / "plan" / "deep" / "tiny.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\nseq: 16\n")

    ended = command(*flag.split(), "+plan.deep=tiny")

    assert (ended.code, ended.err) == (0, "")
    assert [seq for seq, _ in runner.calls] == [16]


def test_version(command):
    assert command("--version") == (0, f"xftrain {xftrain.__version__}\n", "")


# ---- completion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("model/attn=", "model/attn=auto model/attn=flex model/attn=naive"),
        ("model.attn=", "model.attn=auto model.attn=flex model.attn=naive"),
        ("seq=8 model.ffn=g", "model.ffn=geglu model.ffn=gelu"),
        ("optim.l", "optim.lr="),
        ("trainer=", "trainer=auto trainer=cpu trainer=ddp"),
        ("compile=", "compile=false compile=true compile=cudagraphs"),
        ("trainer.precision=bf", "trainer.precision=bf16-mixed trainer.precision=bf16-true"),
        ("optim.impl=t", "optim.impl=torch"),
        ("trainer.max_time=", "trainer.max_time=null"),
    ],
)
def test_a_shell_completes_dotted_and_slashed(command, monkeypatch, typed, offered):
    line = f"xftrain {typed}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    ended = command("-sc", "query=bash")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip().startswith(offered)


def test_bash_learns_of_the_command(command):
    assert "complete -o nospace -o default -F _xftrain_command xftrain" in (
        command("--shell-completion", "install=bash").out
    )

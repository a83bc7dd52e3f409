"""How a command ends: its exit code, and the one sentence that it says."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xftrain
from tests.commands import one_sentence
from xftrain import cli, sweep_table
from xftrain.errors import ConfigError, RunError
from xftrain.overrides import all_groups, normalise
from xftrain.registry import names

SLOW_START = """
import io, sys
from contextlib import redirect_stdout

import xftrain

assert {name for name in ("torch", "hydra") if name in sys.modules} == set(), "import xftrain"
from xftrain.cli import main

for argv, code in ((["--help"], 0), (["--cfg", "job", "model.attn=naive"], 0), (["seq=-1"], 2)):
    sys.argv[1:] = [*argv, "hydra.run.dir=run"]
    with redirect_stdout(io.StringIO()) as out:
        try:
            got = main()
        except SystemExit as stop:
            got = stop.code
    assert got == code, (argv, got)
    assert "xformers" in out.getvalue() or "--help" not in argv
    assert "torch" not in sys.modules, argv
"""

IMPORTED = """
import gc
import sys
import types

from xftrain import cli
from xftrain.errors import RunError

ends, notes, kept = sys.argv.pop(), [], []


def command_of(cfg):
    notes.append(("import", gc.isenabled(), gc.get_freeze_count() > 100_000))
    sys.modules["torch"] = types.ModuleType("torch")
    kept.extend([] for _ in range(100_000))
    if ends == "badly":
        raise RunError("torch is broken.")
    return run


def run(cfg, run_dir, checked):
    kept.extend([] for _ in range(100_000))
    notes.append(("run", gc.isenabled(), gc.get_freeze_count() > 100_000))
    return {"metrics": {}}


cli.command_of = command_of
sys.argv[1:] = ["hydra.run.dir=run"]
assert cli.main() == int(ends == "badly")
assert gc.isenabled()
expected = [("import", False, False), ("run", True, True)]
assert notes == expected[: 1 if ends == "badly" else 2], notes
count = gc.get_freeze_count()
assert cli.main() == int(ends == "badly")
assert gc.isenabled() and gc.get_freeze_count() <= count  # the second 100,000 can be freed
"""


def _result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(xftrain.__file__).parents[1])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_help_a_printed_configuration_and_a_refusal_import_no_torch(tmp_path):
    process = _python(tmp_path, "-c", SLOW_START)

    assert process.returncode == 0, process.stderr
    assert process.stderr == "xftrain: seq must be an integer >= 1, got -1.\n"


def test_the_module_runs_as_a_command(tmp_path):
    process = _python(tmp_path, "-m", "xftrain", "seq=abc")

    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "xftrain: seq must be an integer >= 1, got 'abc'.\n"
    assert list(tmp_path.iterdir()) == []


def test_the_public_names_are_lazy():
    assert {"build_model", "compose", "run"} <= set(dir(xftrain))
    assert xftrain.compose("seq=32").seq == 32
    with pytest.raises(AttributeError, match="'nope'"):
        _ = xftrain.nope


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_what_is_imported_is_left_out_of_searches_for_garbage(tmp_path, ends):
    process = _python(tmp_path, "-c", IMPORTED, ends)
    assert process.returncode == 0, process.stderr


def test_help_lists_groups_and_options(command):
    ended = command("--help")

    assert ended.code == 0
    listed = ended.out.partition("\nmodel/attn:\n")[2].splitlines()[: len(names("model/attn"))]
    assert [line.split()[0] for line in listed] == names("model/attn")
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
    (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    assert command("seq=-1", "hydra.run.dir=.").code == 2
    assert (_result(tmp_path)["status"] == status) == (status != "failed")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("seq=-1", "seq must be an integer >= 1, got -1."),
        ("~model.attn", "model.attn is missing; choose one of "),
        ("model.attn=[naive,sdpa]", "model.attn takes one option, got [naive,sdpa]; "),
        ("+model.attn.nope=1", "model.attn.nope is not a key of model.attn=auto, "),
        ("data=text", "data.path has no value; set it to a string."),
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
        "overrides": [normalise(typed, all_groups())],
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


def test_a_sweep_goes_on_after_failing_jobs_and_ends_with_1_and_a_table(command, jobs, tmp_path):
    ended = command("-m", "seq=8,-1,16,13,14,32", "hydra.sweep.dir=sweep")

    assert ended.code == 1
    assert [words[2] for words in jobs] == ["seq=8", "seq=16", "seq=13", "seq=14", "seq=32"]
    assert ended.err.splitlines() == [
        "xftrain: job 1: seq must be an integer >= 1, got -1.",
        "xftrain: job 2: the disk is full.",
        "xftrain: job 3: the process was ended by SIGKILL, as the system does where memory runs "
        "out and left no result",
        "xftrain: job 4: the run folder cannot be made.",
        "xftrain: 4 of 6 jobs failed (job 1: seq must be an integer >= 1, got -1); "
        f"resume_sweep={tmp_path / 'sweep'} runs them again.",
    ]
    with (tmp_path / "sweep" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["status"], row["seq"]) for row in rows] == [
        ("0", "completed", "8"),
        ("5", "completed", "32"),
        ("1", "refused", "-1"),
        ("2", "failed", "16"),
        ("3", "crashed", "13"),
        ("4", "crashed", "14"),
    ]
    summary = (tmp_path / "sweep" / "summary.md").read_text()
    assert summary in ended.out and "- job 2: the disk is full." in summary
    assert (tmp_path / "sweep" / "summary.png").is_file()


def test_a_sweep_that_cannot_be_drawn_has_ended_all_the_same(command, jobs, tmp_path):
    (tmp_path / "sweep" / "summary.png").mkdir(parents=True)
    ended = command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    assert ended.code == 0 and "| job | status" in ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith("xftrain: warning: no ") and "summary.png" in line


def test_a_sweep_whose_launcher_ends_early_has_a_table(command, jobs, monkeypatch):
    """As joblib's does where the kernel kills a worker of it."""
    note_job = sweep_table.note_job

    def lose(folder, number, run_dir):
        if number == 1:
            raise RuntimeError("a worker was killed.\nThat is all.")
        note_job(folder, number, run_dir)

    monkeypatch.setattr(sweep_table, "note_job", lose)
    ended = command("-m", "seq=8,32", "hydra.sweep.dir=sweep")

    assert ended.code == 1 and "| 0   | completed |" in ended.out
    assert "the launcher lost jobs (RuntimeError: a worker was killed); resume_sweep=" in ended.err


def test_a_resumed_sweep_runs_what_failed_and_what_is_missing(command, jobs, tmp_path):
    command("-m", "seq=8,16,13,32", "hydra.sweep.dir=sweep")
    shutil.rmtree(tmp_path / "sweep" / "3_seq=32")
    jobs.clear()

    ended = command("resume_sweep=sweep")  # what it ran stands in its multirun.yaml

    assert ended.code == 1
    assert [words[2] for words in jobs] == ["seq=16", "seq=13", "seq=32"]
    assert len((tmp_path / "sweep" / "summary.csv").read_text().splitlines()) == 5
    jobs.clear()
    again = command("-m", "seq=8,32", "hydra.sweep.dir=sweep")
    assert [words[2] for words in jobs] == ["seq=8", "seq=32"]  # not resumed: all of them
    assert again.code == 0  # what an earlier sweep left in the folder is no job of this one
    assert len((tmp_path / "sweep" / "summary.csv").read_text().splitlines()) == 3
    assert "the folder of a sweep, got 'nowhere'." in command("resume_sweep=nowhere").err
    assert "the folder of a sweep, got ''." in command("resume_sweep=").err


def test_a_resumed_sweep_is_the_same_command(command, jobs, tmp_path):
    place = ['hydra.sweep.dir="a (b), c"']
    command("-m", "--config-name", "benchmark", "seq=8,16", *place)
    names = ["--config-name", "benchmark"]
    assert [words[:3] for words in jobs] == [[*names, "seq=8"], [*names, "seq=16"]]
    jobs.clear()

    ended = command("resume_sweep=a (b), c")

    assert [words[:3] for words in jobs] == [[*names, "seq=16"]]
    assert "'resume_sweep=" in ended.err  # quoted for the shell
    command("-m", "seq=8,13", "hydra.sweep.dir=own", "hydra.sweep.subdir=j${hydra.job.num}")
    assert "repeat its whole command" in command("resume_sweep=own").err
    command("-m", "--config-dir", str(tmp_path), "seq=8,13", "hydra.sweep.dir=own")
    assert "repeat its whole command" in command("resume_sweep=own").err
    assert command("-m", "--config-dir", str(tmp_path), "seq=8,13", "resume_sweep=own").code == 1


def test_side_by_side_a_benchmark_is_refused(command, jobs, tmp_path):
    # its sweeps measure times; a job that is refused is a row like any other
    side_by_side = ("--config-name", "benchmark", "hydra/launcher=joblib")
    ended = command("-m", *side_by_side, "seq=8,16", "hydra.sweep.dir=sweep")
    assert ended.code == 1 and jobs == [] and "2 of 2 jobs failed" in ended.err
    assert "measures times, which jobs side by side on one device falsify" in ended.err


def test_a_resumed_sweep_takes_overrides_of_hydras_and_no_others(command, jobs, tmp_path):
    # one override made another sweep of it, and its table was lost
    command("-m", "seq=8,13", "hydra.sweep.dir=sweep")
    before = (tmp_path / "sweep" / "summary.csv").read_text()
    jobs.clear()
    ended = command("resume_sweep=sweep", "seed=3")
    assert "had seq=8,13, which this command has not" in one_sentence(ended, 2)
    assert jobs == [] and (tmp_path / "sweep" / "summary.csv").read_text() == before
    command("resume_sweep=sweep", "hydra.sweep.dir=sweep")
    assert [words[2] for words in jobs] == ["seq=13"]


def test_a_sweep_folder_that_cannot_be_written_is_said(command, jobs, tmp_path):
    # it ended with 0, without a table, whatever became of the jobs
    (tmp_path / "sweep" / ".sweep.json").mkdir(parents=True)
    ended = command("-m", "seq=8,13", "hydra.sweep.dir=sweep")
    assert "cannot be written" in one_sentence(ended, 2) and jobs == []


def test_sigterm_ends_the_job_and_then_the_sweep(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "xftrain", "-m", "seed=1,2", "max_steps=100000", "model.attn=naive"]
        + ["data.stop_at_accuracy=null", "hydra.sweep.dir=sweep", "batch_tokens=128"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = ""
    while "step 20/" not in line:
        line = process.stdout.readline()
        assert line, process.stderr.read()
    process.terminate()
    _, said = process.communicate(timeout=60)

    assert process.returncode == 143 and said == "xftrain: stopped by SIGTERM.\n"
    (job,) = (tmp_path / "sweep").glob("0_*")
    assert _result(job)["status"] == "stopped"  # it was told, and saved
    assert (job / "checkpoints" / "last.ckpt").is_file()
    assert "stopped" in (tmp_path / "sweep" / "summary.csv").read_text()


def test_a_job_gets_the_flags_and_the_folder_of_its_sweep(command, jobs, tmp_path):
    (tmp_path / "own" / "model" / "attn").mkdir(parents=True)
    (tmp_path / "own" / "model" / "attn" / "mine.yaml").write_text("name: naive\n")
    ended = command(
        *("-m", "--config-dir", "own", "model.attn=mine,sdpa", "model.ffn=gelu"),
        *("hydra.sweep.dir=a b", "+hydra.job.env_set.X=1"),
    )

    assert (ended.code, ended.err) == (0, "")
    place = tmp_path / "a b" / "0_attn=mine"
    assert jobs[0] == [
        *("--config-name", "train", "--config-dir", str(tmp_path / "own")),
        *("model/attn=mine", "model/ffn=gelu", "+hydra.job.env_set.X=1"),
        'hydra.job.config.override_dirname.exclude_keys=["model/ffn"]',  # what all jobs share
        *(f'hydra.run.dir="{place}"', "hydra.mode=RUN", "hydra.output_subdir=null"),
        *(f'hydra.sweep.dir="{place.parent}"', "hydra.job.num=0", 'hydra.job.id="0"'),
    ]


def test_flags_may_stand_between_overrides(command, jobs):
    assert command("seq=8", "-m", "model.attn=naive,sdpa", "--config-name", "train").code == 0
    assert [words[2:4] for words in jobs] == [
        ["seq=8", "model/attn=naive"],
        ["seq=8", "model/attn=sdpa"],
    ]


def test_a_sweep_with_an_unknown_option_runs_no_job(command, runner):
    said = one_sentence(command("-m", "model.attn=naive,xfomers"), 2)

    assert said.startswith("model.attn=xfomers: no such option; ")
    assert runner.calls == []


def test_a_failure_travels_between_processes():
    """A launcher may run jobs elsewhere and hand their exceptions back."""
    failure = pickle.loads(pickle.dumps(cli.JobFailed("job 1: no luck", 1)))

    assert (failure.sentence, failure.code) == ("job 1: no luck", 1)


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

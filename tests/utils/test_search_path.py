"""The working folder may be anyone's: nothing in it is imported but what a configuration names."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import spawn
from pathlib import Path

import pytest
from hydra.utils import get_class

from xftrain.benchmark.cells import Cell
from xftrain.benchmark.pool import Pool
from xftrain.benchmark.worker import Job, Reporter
from xftrain.utils import search_path

ROOT = Path(__file__).parents[2]
SMALL = ["model.dim=16", "model.num_layers=1", "model.num_heads=2", "seq=16", "batch_tokens=32"]
SMALL += ["max_steps=1", "trainer=cpu", "model.attn=naive", "callbacks=none"]
# Dependencies, what they try to import though it may not be installed, and the standard library
# but for what Python itself imports to find `-m`.
NAMES = "hydra omegaconf antlr4 yaml torch numpy lightning lightning_utilities torchmetrics rich \
tensorboard matplotlib tokenizers safetensors xformers triton pydantic annotated_types tqdm fsspec \
pandas scipy psutil joblib cloudpickle optuna IPython liger_kernel bitsandbytes deepspeed sympy \
torch_xla mlflow wandb comet_ml neptune litlogger transformer_engine habana_frameworks colorama \
__future__ typing typing_extensions dataclasses json logging argparse subprocess socket ctypes \
decimal difflib csv hmac hashlib secrets multiprocessing pickle selectors inspect ast copy shutil \
tempfile sitecustomize usercustomize readline".split()
EVIL = "import pathlib\npathlib.Path({marker!r}).open('a').write(__name__ + ' ')\n"
MINE = """
import os, subprocess, sys
from multiprocessing import resource_tracker
import helper
from lightning.pytorch import Callback


class Mine(Callback):
    def __init__(self):
        assert os.getcwd() not in sys.path and helper.x == 1
        open("made", "w").close()

    def on_train_start(self, trainer, pl_module):
        # as torch's compiler asks what the CPU can do, and as multiprocessing starts what it needs
        asked = "import sys; from ctypes import cdll; sys.exit(sys.path[0] == '')"
        subprocess.run([sys.executable, "-c", asked], check=True)
        resource_tracker.ensure_running()
        resource_tracker._resource_tracker._stop()  # waits for its end
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working folder with modules and plug-ins that nobody asked for."""
    folder = tmp_path / "work"
    (folder / "hydra_plugins").mkdir(parents=True)
    (folder / "evil-1.dist-info").mkdir()
    evil = EVIL.format(marker=str(tmp_path / "executed"))
    for name in NAMES:
        (folder / f"{name}.py").write_text(evil)
    (folder / "hydra_plugins" / "evil.py").write_text(evil)
    (folder / "entry.py").write_text(evil + "def go(): return []\n")
    (folder / "evil-1.dist-info" / "METADATA").write_text("Name: evil\nVersion: 1\n")
    entries = "[torch.backends]\nevil = entry:go\n"
    (folder / "evil-1.dist-info" / "entry_points.txt").write_text(entries)
    return folder


def _run(folder: Path, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "xftrain", *arguments, *SMALL],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    marker = folder.parent / "executed"
    assert not marker.exists(), marker.read_text()
    assert ended.returncode == 0, ended.stderr


@pytest.mark.long
def test_a_job_of_a_sweep_imports_nothing_of_the_working_folder(hostile: Path) -> None:
    _run(hostile, "-m", "seed=1", "hydra.sweep.dir=sweep")
    assert "completed" in (hostile / "sweep" / "summary.csv").read_text()


@pytest.mark.long
def test_a_class_of_the_working_folder_is_found_behind_all_others(hostile: Path) -> None:
    (hostile / "mine.py").write_text(MINE)
    (hostile / "helper.py").write_text("x = 1\n")
    _run(hostile, "+callbacks.mine._target_=mine.Mine")
    assert (hostile / "made").exists()


# ---- the finder


OWN = ("own_module_x", "own_module_y", "own_module_w", "own_package_z", "own_library_v")
MODULE = """
class A:
    @staticmethod
    def sibling():
        import own_module_y
        return own_module_y.y

    @staticmethod
    def serve(connection):
        from own_module_w import Answer
        connection.send(Answer())
"""
ANSWER = """
import os, pydoc, sys

class Answer:
    def __init__(self):
        self.refused = [name for name in ["own_package_z"] if pydoc.locate(name) is None]
        self.is_off_path = os.getcwd() not in sys.path and "" not in sys.path
"""


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(spawn, "get_preparation_data", spawn.get_preparation_data)
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "own_module_x.py").write_text(MODULE)
    (tmp_path / "own_module_y.py").write_text("y = 1\n")
    (tmp_path / "own_module_w.py").write_text(ANSWER)
    (tmp_path / "own_package_z" / "part").mkdir(parents=True)
    (tmp_path / "own_package_z" / "__init__.py").touch()
    inner = "from ..other import other\nimport own_module_y\nclass B: pass\n"
    (tmp_path / "own_package_z" / "part" / "inner.py").write_text(inner)
    (tmp_path / "own_package_z" / "other.py").write_text("other = 1\n")
    search_path.find_own_classes()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
        del sys.modules[name]


@pytest.mark.usefixtures("finder")
def test_only_what_a_configuration_names_opens_the_folder(tmp_path: Path) -> None:
    for name in OWN:
        assert importlib.util.find_spec(name) is None
    with pytest.raises(ImportError):
        importlib.import_module("own_module_y")
    with pytest.raises(ImportError):
        get_class("own_module_of_nobody.A")
    assert get_class("own_module_x.A").__name__ == "A"
    assert str(tmp_path) not in sys.path


@pytest.mark.usefixtures("finder")
def test_only_own_modules_import_others_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = get_class("own_module_x.A")
    for name in ("own_module_y", "own_package_z"):  # as a library looks for what is optional
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ImportError):
            importlib.import_module(name)
    # a library may be installed below the working folder
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "own_library_v.py").write_text("import own_module_y\n")
    monkeypatch.syspath_prepend(tmp_path / "venv")
    with pytest.raises(ImportError):
        importlib.import_module("own_library_v")

    assert own.sibling() == 1
    assert get_class("own_package_z.part.inner.B").__name__ == "B"
    assert importlib.import_module("own_module_y").y == 1  # it is there by now
    search_path.find_own_classes()  # once more, for the next job of the process
    del sys.modules["own_module_y"]
    assert own.sibling() == 1


@pytest.mark.usefixtures("finder")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_objects_of_own_classes_reach_other_processes_and_come_back(method: str) -> None:
    context = multiprocessing.get_context(method)
    theirs, ours = context.Pipe()
    process = context.Process(target=get_class("own_module_x.A").serve, args=(theirs,))
    process.start()
    theirs.close()
    received = ours.recv()  # of a module that is unknown here
    process.join()
    assert type(received).__module__ == "own_module_w"
    assert received.refused == ["own_package_z"] and received.is_off_path


@pytest.mark.usefixtures("finder")
def test_there_is_one_finder_for_the_folder_of_the_last_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    search_path.find_own_classes()
    with pytest.raises(ImportError):
        get_class("own_module_x.A")
    monkeypatch.setattr(search_path, "_IS_REFUSED", True)  # python -P
    monkeypatch.chdir(tmp_path)
    search_path.find_own_classes()
    with pytest.raises(ImportError):
        get_class("own_module_x.A")


@pytest.mark.slow
@pytest.mark.usefixtures("finder")
def test_a_process_of_the_benchmark_finds_a_class_that_it_is_told(tmp_path: Path) -> None:
    # the README's own backend in a list of options was refused, as no module of that name
    cells = (Cell("s", {"what": "own_module_x.A"}),)
    with Pool(tmp_path / "worker.log") as pool:
        ((_, row),) = pool.run([Job(_locate, cells)], timeout_s=60)
    assert row["status"] == "ok" and row["found"] == "A"


def _locate(cells: Sequence[Cell], reporter: Reporter) -> None:
    found = reporter.attempt(0, get_class, cells[0].columns["what"])
    if found is not None:
        reporter.row(0, "ok", found=found.__name__)


# ---- python -m


@pytest.fixture
def as_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "seq=8"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "-m", "xftrain", "seq=8"])


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        (["python", "-m", "xftrain"], True),
        (["python", "-um", "xftrain", "-m", "seq=8,16"], True),
        (["python", "-mxftrain"], True),
        (["python", "-m", "xftrain.launch.cli"], True),
        (["python", "-m", "mine", "xftrain"], False),
        (["python", "-m", "mine.tools"], False),
    ],
)
def test_another_program_that_imports_this_package_keeps_its_path(
    monkeypatch: pytest.MonkeyPatch, command: list[str], is_ours: bool
) -> None:
    at = next(n for n, word in enumerate(command) if word.startswith("-") and "m" in word)
    rest = command[at + (1 if command[at].endswith("xftrain") else 2) :]
    monkeypatch.setattr(sys, "argv", ["-m", *rest])
    monkeypatch.setattr(sys, "orig_argv", command)
    monkeypatch.setattr(sys, "path", ["/somewhere", "/lib"])
    search_path.leave_out_working_folder()
    assert sys.path == (["/lib"] if is_ours else ["/somewhere", "/lib"])


@pytest.mark.usefixtures("as_module")
def test_what_python_m_has_put_first_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/somewhere", "/lib", str(ROOT)])
    search_path.leave_out_working_folder()
    assert sys.path == ["/lib", str(ROOT)]


@pytest.mark.usefixtures("as_module")
def test_a_checkout_in_place_stays_last_but_before_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), "/lib"])
    search_path.leave_out_working_folder()
    assert sys.path == ["/lib", str(ROOT)]
    monkeypatch.setattr(sys, "path", [str(ROOT), str(ROOT), "/lib"])  # PYTHONPATH names it too
    search_path.leave_out_working_folder()
    assert sys.path == [str(ROOT), "/lib"]
    (tmp_path / "xftrain").mkdir()
    (tmp_path / "xftrain" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(ROOT), "/lib", str(tmp_path), "/more"])
    search_path.leave_out_working_folder()
    assert sys.path == ["/lib", str(ROOT), str(tmp_path), "/more"]


def test_children_do_not_see_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_path, "_IS_REFUSED", False)
    ours = search_path.variables_of_children()
    assert ours == {"PYTHONSAFEPATH": "1", "XFTRAIN_SAFE_PATH": "1"}
    monkeypatch.setattr(search_path, "_IS_REFUSED", True)  # the user's own
    assert search_path.variables_of_children() == {"PYTHONSAFEPATH": "1"}
    monkeypatch.chdir(ROOT)
    assert search_path.variables_of_children() == {}

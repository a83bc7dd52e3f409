"""The variables by which a launcher tells a process its rank: empty, nonsense, of several nodes."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from tests.command_line import one_sentence
from tests.train.runs import run
from xftrain.errors import ConfigError, RunError, Stopped
from xftrain.train import distributed
from xftrain.train.distributed import DDP, connect
from xftrain.utils import processes
from xftrain.utils.processes import (
    check_rank_variables,
    drop_empty_variables,
    drop_relative_base_folders,
    raising_stopped,
)

NAMES = processes._RANK_VARIABLES
IGNORED = processes._IGNORED_RANKS
LONE = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
COMPLETE = {**LONE, "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {**COMPLETE, "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch):
    for name in (*NAMES, *IGNORED, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("name", [*NAMES, *IGNORED, "TORCH_LOGS"])  # torch fails at that one
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_unset(variables, name, empty):
    variables(**{name: empty})
    assert (processes.rank(), processes.num_ranks(), processes.is_rank()) == (0, 1, False)
    check_rank_variables()
    drop_empty_variables()
    assert name not in os.environ


@pytest.mark.parametrize("name", [*NAMES, *IGNORED])
@pytest.mark.parametrize("value", ["two", "-1", "1.5", "0x1", "²", "9" * 40, "1\n2", "\x1b[2J"])
def test_nonsense_is_one_sentence(variables, command, name, value):
    variables(**{name: value})
    said = one_sentence(command("max_steps=1"), 2)
    assert (
        said.startswith(f"{name} in the environment must be a whole number") and "\x1b" not in said
    )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"WORLD_SIZE": "8"},  # some machines set it for every program
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_PROCID": "3", "JSM_NAMESPACE_RANK": "3"},  # of tasks that are no ranks
        COMPLETE,
        TORCHRUN,
        {**TORCHRUN, "LOCAL_RANK": "1", "RANK": "1", "NODE_RANK": "0"},
    ],
)
def test_one_machine_is_accepted(variables, values):
    variables(**values)
    check_rank_variables()


@pytest.mark.parametrize(
    "values",
    [
        {**TORCHRUN, "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"},
        {**TORCHRUN, "LOCAL_WORLD_SIZE": "1", "RANK": "1", "GROUP_RANK": "1"},
        {**LONE, "RANK": "1"},
        {**LONE, "NODE_RANK": "1"},
        {**LONE, "LOCAL_WORLD_SIZE": "1"},
    ],
)
def test_several_nodes_are_refused_on_each(variables, command, values):
    # torchrun sets LOCAL_RANK=0 on both: two rank 0 waited for each other for half an hour
    variables(**values)
    said = one_sentence(command("trainer=ddp", "trainer.devices=2", "max_steps=1"), 2)
    assert said.startswith("xftrain trains on one machine") and "--nnodes=1" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"LOCAL_RANK": "2", "WORLD_SIZE": "2"}, "LOCAL_RANK .* must be below WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE .* at least 1"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1 and WORLD_SIZE=2 .* without LOCAL_RANK"),
        # each of these trained without metrics.csv and events, or without any file at all
        ({"RANK": "3"}, "RANK=3 is .* without LOCAL_RANK: .* or unset it"),
        ({"RANK": "3", "WORLD_SIZE": "1"}, "RANK=3 and WORLD_SIZE=1 are .* without LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 and WORLD_SIZE=2 are .* without LOCAL_RANK"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 is .* without RANK, WORLD_SIZE, MASTER_ADDR"),
        ({"LOCAL_RANK": "0", "RANK": "3"}, "one machine"),
        ({"LOCAL_RANK": "3", "RANK": "3"}, "are .* without WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "3", "WORLD_SIZE": "1"}, "must be below WORLD_SIZE, got 3 and 1"),
        (LONE, "LOCAL_RANK=0 and WORLD_SIZE=2 are .* without RANK, MASTER_ADDR, MASTER_PORT"),
        ({**LONE, "RANK": "0"}, "are .* without MASTER_ADDR, MASTER_PORT: .* or unset them"),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "without RANK, WORLD_SIZE"),
    ],
)
def test_places_that_cannot_be_are_refused(variables, values, said):
    variables(**values)
    with pytest.raises(ConfigError, match=said):
        check_rank_variables()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (0, 1, False)),
        ({"WORLD_SIZE": "8"}, (0, 1, False)),
        ({"LOCAL_RANK": "0"}, (0, 1, False)),
        ({"SLURM_PROCID": "3"}, (0, 1, False)),
        ({**COMPLETE, "LOCAL_RANK": "1", "RANK": "1"}, (1, 2, True)),
    ],
)
def test_lightning_takes_the_rank_of_this_package(variables, monkeypatch, values, expected):
    variables(**values)
    monkeypatch.setattr(rank_zero_only, "rank", 7)
    check_rank_variables()
    distributed.set_lightning_rank()
    assert (processes.rank(), processes.num_ranks(), processes.is_rank()) == expected
    assert rank_zero_only.rank == expected[0]


def test_a_run_has_its_records_whatever_rank_lightning_found(tmp_path, monkeypatch):
    # as Lightning is imported where SLURM_PROCID=1: metrics.csv and the events were lost
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    result = run(tmp_path, "max_steps=2")
    assert (tmp_path / "metrics.csv").is_file() and list(tmp_path.glob("events.out.*"))
    assert result["status"] == "completed"


def test_ranks_that_were_not_told_where_to_meet_are_refused(variables):
    variables(**LONE)
    with pytest.raises(ConfigError, match="MASTER_ADDR is not in the environment of this rank"):
        connect(torch.device("cpu"), 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_rank_that_waits_for_another(variables, number):
    # the store of torch waits in C, where no handler of Python runs: it took 30 minutes
    variables(**LONE, MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    started = time.monotonic()
    with pytest.raises(Stopped), raising_stopped():
        connect(torch.device("cpu"), 2)
    assert time.monotonic() - started < 5


def test_ranks_of_this_package_meet_in_a_folder_and_at_no_port(variables, tmp_path, monkeypatch):
    assert distributed._file_store(1) is None
    monkeypatch.setenv("XFTRAIN_RANKS", str(tmp_path))
    store = distributed._file_store(1)
    store.set("key", "value")
    assert (tmp_path / "store").is_file() and store.get("key") == b"value"


def test_a_rank_that_died_ends_the_wait(monkeypatch):
    died = threading.Event()
    monkeypatch.setattr(distributed, "rank_died", died)
    threading.Timer(0.2, died.set).start()
    with pytest.raises(ConnectionError, match="another rank has died"):
        distributed._interruptible(lambda: time.sleep(3))


def test_what_fails_while_it_is_waited_for_is_raised():
    def fails() -> None:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        distributed._interruptible(fails)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


# ---- parameters without a gradient


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"used": nn.Linear(2, 2), "spare": nn.Linear(2, 2, bias=False)})
        self.automatic_optimization = True


def test_a_parameter_without_a_gradient_is_named_after_the_first_batch():
    strategy, module = DDP(), Spare()
    strategy._lightning_module = module  # type: ignore[assignment]
    loss = module.model["used"](torch.ones(1, 2)).sum()
    loss.backward()
    with pytest.raises(RunError, match=r"and spare\.weight got no gradient: use them"):
        strategy.post_backward(loss)
    strategy.post_backward(loss)  # it looks once


def test_torchs_own_message_on_it_is_replaced():
    strategy, module = DDP(), Spare()
    strategy._lightning_module = module  # type: ignore[assignment]
    error = RuntimeError(
        "Expected to have finished reduction in the prior iteration before starting a new one. "
        "Parameter indices which did not receive grad for rank 0: 2\n In addition"
    )
    strategy.on_exception(error)
    assert re.search(r"spare\.weight got no gradient", str(error)) and "find_unused" not in str(
        error
    )
    other = RuntimeError("out of luck")
    strategy.on_exception(other)
    assert str(other) == "out of luck"


def test_a_relative_base_folder_is_unset_for_libraries_too(monkeypatch: pytest.MonkeyPatch):
    # matplotlib and others make such a folder in the working folder
    monkeypatch.setenv("XDG_CACHE_HOME", "rel\x1b")
    monkeypatch.setenv("XDG_STATE_HOME", "/abs")
    monkeypatch.setenv("XDG_CONFIG_HOME", "~/home")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    (said,) = drop_relative_base_folders()
    assert said.startswith("XDG_CACHE_HOME=rel\\x1b is ignored, as the XDG")
    assert "XDG_CACHE_HOME" not in os.environ and os.environ["XDG_STATE_HOME"] == "/abs"
    assert os.environ["XDG_CONFIG_HOME"] == "~/home"

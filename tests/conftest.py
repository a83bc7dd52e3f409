"""What every test runs with: skips where there is no GPU, one thread, no chance, its own cache."""

import gc
import logging
import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from tests.command_line import command, jobs, runner  # noqa: F401  # fixtures
from tests.compositions import keep_compositions
from tests.forked import forked_jobs, forked_workers  # noqa: F401  # fixtures

# Small tensors gain nothing from threads, and two test processes would fight over the cores. The
# variable is for the commands that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile(
    "xftrain",
    derandomize=True,
    deadline=None,
    database=None,
    # how long an example takes says more of the machine than of the code
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("xftrain")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="all faults of tests/reliability")
    parser.addoption("--long", action="store_true", help="also the tests marked long")
    parser.addoption("--pairs", action="store_true", help="the whole covering array of tests/pairs")
    parser.addoption("--pairs-seed", default="0", help="draws another covering array")


def _missing_gpus(item: pytest.Item) -> str | None:
    """Why this test cannot run here, or None."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if item.get_closest_marker("multi_gpu") and num_gpus < 2:
        return f"needs two NVIDIA GPUs or more, found {num_gpus}"
    if item.get_closest_marker("cuda") and num_gpus < 1:
        return "needs an NVIDIA GPU, found none"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if reason := _missing_gpus(item):
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="takes long: give --long"))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Hydra gives the root logger a level and handlers, which the next test is not to have.

    Those of pytest itself come and go with the phases of a test, but for the one of `--log-cli`.
    """
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before and not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)
            handler.close()
    for handler in before:
        if type(handler).__name__ != "LogCaptureHandler" and handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
    for logger in logging.Logger.manager.loggerDict.values():  # as hydra.job_logging=disabled does
        if isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.fixture(autouse=True)
def _no_command_line_left() -> Iterator[None]:
    """Hydra keeps the configuration of a command, which the next test's runs would record."""
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session", autouse=True)
def _libraries_frozen() -> Iterator[None]:
    """Searches for garbage leave out the libraries, as in a command's process."""
    import lightning.pytorch  # noqa: F401  # for its objects

    gc.collect()
    gc.freeze()
    yield
    gc.freeze()  # nor does the end of the process go through what the tests left


@pytest.fixture(scope="session", autouse=True)
def _compositions_kept() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        keep_compositions(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Token files and vocabularies of the tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))  # the key of seals
        yield

"""A secret of the environment is in nothing that a run leaves."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.train.runs import run
from xftrain.errors import ConfigError
from xftrain.utils.read_variables import READ


@pytest.mark.fault("secret in the environment")
def test_a_secret_of_the_environment_is_never_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("XFTRAIN_TEST_TOKEN", "hunter2-hunter2")
    tags = "tags=['${oc.env:XFTRAIN_TEST_TOKEN}','run-${oc.env:XFTRAIN_TEST_TOKEN}']"
    run(tmp_path, "max_steps=2", tags)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert [path.name for path in files if b"hunter2" in path.read_bytes()] == []
    assert "run-${oc.env:XFTRAIN_TEST_TOKEN}" in (tmp_path / "config.yaml").read_text()
    run(tmp_path, "max_steps=3", tags, "ckpt=auto")


@pytest.mark.fault("secret in the environment")
def test_a_short_value_in_a_secret_leaves_nothing_of_it(tmp_path, monkeypatch):
    # that of the seed was replaced first, and hunter${...} written down
    monkeypatch.setattr(READ, "values", {})
    monkeypatch.setenv("XFTRAIN_TEST_SEED", "2")
    monkeypatch.setenv("XFTRAIN_TEST_TOKEN", "hunter2-hunter2")
    run(
        tmp_path,
        "max_steps=2",
        "seed=${oc.env:XFTRAIN_TEST_SEED}",
        "tags=['${oc.env:XFTRAIN_TEST_TOKEN}','run-${oc.env:XFTRAIN_TEST_TOKEN}']",
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if b"hunter" in path.read_bytes()] == []
    assert "run-${oc.env:XFTRAIN_TEST_TOKEN}" in (tmp_path / "config.yaml").read_text()


@pytest.mark.fault("secret in the environment")
@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=${oc.env:XFTRAIN_TEST_TOKEN}",  # wrong, and quoted in the sentence that says so
        "tags=['${oc.env:\"XFTRAIN_TEST_TOKEN\"}']",
        "tags=['${oc.decode:${oc.env:XFTRAIN_TEST_TOKEN}}']",
    ],
)
def test_nor_in_an_error_nor_by_another_way(tmp_path, monkeypatch, override):
    monkeypatch.setenv("XFTRAIN_TEST_TOKEN", "hunter2-hunter2")
    with suppress(ConfigError):
        run(tmp_path, "max_steps=1", override)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and [path.name for path in files if b"hunter2" in path.read_bytes()] == []

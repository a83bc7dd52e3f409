"""What the tests keep of a composition is what Hydra composes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from tests.compositions import compose_anew, keep_compositions
from xftrain.config.compose import _isolated_hydra, compose
from xftrain.errors import ConfigError

COMMANDS = [("train", RunMode.RUN), ("train", RunMode.MULTIRUN), ("benchmark", RunMode.RUN)]
TYPED = [
    ["model/attn=naive", "seq=32", "+model.bias.window=3", "model.dim=8", "seq=16"],
    ["seq=8", "model/attn=sdpa", "hydra.run.dir=here", "callbacks=[default,parity]"],
    ["~model.pos", "~callbacks.progress", "optim=mine", "tags=[a]", "model/bias=alibi"],
    ["model/bias={window: 8}", "data=text", "data.path=${oc.env:HOME}", "+logger/x@y=csv"],
    ["seq=8,16", "model/attn=naive,sdpa", "hydra.sweep.dir=there"],
]


def _composed(folder: Path, name: str, typed: list[str], mode: RunMode) -> str:
    """The text of a configuration, which is then spoilt; or of the refusal."""
    with _isolated_hydra([folder]):
        try:
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration(name, typed, mode)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    text = OmegaConf.to_yaml(cfg)
    OmegaConf.update(cfg, "model.dim", -1, force_add=True)
    cfg.hydra.overrides.task.append("x")
    return text


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Hydra's own composition; one that nothing was kept for; one that uses what is kept."""
    return [
        lambda: compose_anew(monkeypatch),
        lambda: keep_compositions(monkeypatch),
        lambda: None,
    ]


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_kept_is_what_hydra_composes(
    tmp_path: Path, modes: list[Callable[[], None]], typed: list[str]
) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("name: adamw\nlr: 0.1\n")
    found: list[list[str]] = []
    for mode in modes:
        mode()
        found.append([_composed(tmp_path, name, typed, of) for name, of in COMMANDS])
    assert found[0] == found[1] == found[2]


def test_a_changed_file_of_options_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "optim" / "mine.yaml"
    path.parent.mkdir()
    for lr in (0.1, 0.2):
        path.write_text(f"name: adamw\nlr: {lr}\n")
        assert compose("optim=mine", config_dir=tmp_path).optim.lr == lr
    path.unlink()
    with pytest.raises(ConfigError, match="no such option"):
        compose("optim=mine", config_dir=tmp_path)

"""Every experiment on disk composes, and trains where it is made small."""

from __future__ import annotations

from pathlib import Path

import pytest

from xftrain import compose, run
from xftrain.config.compose import validate
from xftrain.config.registry import conf_dir
from xftrain.errors import ConfigError

NAMES = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
SMALL = ["max_steps=2", "batch_tokens=128", "trainer.precision=32-true", "compile=false"]
MORE = {
    "tutorial": ["data.batch_size=2"],
    "long_context": ["model.dim=48", "model.num_heads=4", "model.num_layers=1", "seq=128"],
    "text_124m": [
        "model.dim=48",
        "model.num_heads=4",
        "model.num_layers=1",
        "seq=64",
        "data.vocab_size=300",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_trains(tmp_path: Path, name: str) -> None:
    (tmp_path / "corpus.txt").write_text("a line of text, and another one\n" * 500)
    text = [f"data.path={tmp_path / 'corpus.txt'}"] if name.startswith("text") else []
    cfg = compose(f"experiment={name}", *SMALL, *MORE.get(name, []), *text)
    assert run(cfg, tmp_path / "run")["steps"] == 2


def test_the_command_line_beats_an_experiment() -> None:
    cfg = compose("experiment=alibi_gqa", "model.bias=causal", "seq=32")
    assert (cfg.model.bias.name, cfg.model.heads.name, cfg.seq) == ("causal", "gqa", 32)


def test_the_tutorials_experiment_is_the_tutorials_loop() -> None:
    cfg = validate(compose("experiment=tutorial"))
    model = cfg.model
    sizes = (model.dim, model.num_layers, model.num_heads, model.ffn.options["hidden_dim"])
    assert sizes == (128, 3, 8, 4 * 128) and not model.tie_embeddings
    assert (cfg.seq, cfg.batch_size, cfg.max_steps) == (63, 64, 400)
    assert cfg.optim.options["lr"] == 3e-3
    assert cfg.schedule.node == {"name": "constant", "warmup_steps": 0}
    assert (cfg.trainer.precision, cfg.trainer.gradient_clip_val) == ("16-mixed", None)


def test_an_experiment_that_needs_a_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path has no value"):
        run(compose("experiment=text_124m"), tmp_path)

"""lm-evaluation-harness drives a checkpoint by its own interface, of which a stand-in is here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.train.runs import last, run
from xftrain.errors import ConfigError


class LM:
    """The part of `lm_eval.api.model.LM` (0.4.13) that an adapter builds upon."""

    def __init__(self) -> None:
        self._rank, self._world_size, self._device = 0, 1, None


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lm_eval.api.model"].LM = LM  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "xftrain.commands.lm_eval", raising=False)
    from xftrain.commands import lm_eval

    yield lm_eval
    sys.modules.pop("xftrain.commands.lm_eval", None)


def request(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_the_harness_gets_what_the_model_says(tmp_path: Path, adapter: Any) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat on the mat. " * 400)
    words = ("data=text", f"data.path={tmp_path / 'corpus.txt'}", "seq=32", "batch_tokens=256")
    run(tmp_path / "run", *words, "max_steps=60", "optim.lr=0.02", "model.pos=rope")
    ours = adapter.XftrainLM(str(last(tmp_path / "run")), accelerator="cpu", max_tokens="100")

    pairs = [("the cat", " sat"), ("the cat", " qqq"), ("", "the")]
    (good, is_greedy), (bad, _), _ = ours.loglikelihood([request(*pair) for pair in pairs])
    assert good > bad + 3 and is_greedy

    text = "the cat sat on the mat. " * 4  # more than the 32 positions of the run
    (rolling,) = ours.loglikelihood_rolling([request(text)])
    whole = torch.tensor([256, *text.encode()])
    total = 0.0
    for at in range(1, len(whole)):  # each token in the window that ends with its chunk
        end = min(len(whole) - 1, 32 * -(-at // 32))
        first = max(0, end - 32)
        with torch.no_grad():
            logs = ours._model(whole[None, first:end])[0].log_softmax(-1)
        total += float(logs[at - 1 - first, whole[at]])
    assert rolling == pytest.approx(total, abs=1e-3)

    options = {"until": ["."], "max_gen_toks": 20}
    asked = [request("the cat", options), request("sat on", {**options, "until": " mat"})]
    first, second = ours.generate_until(asked)
    assert first.startswith(" sat") and "." not in first
    assert second == " the"


def test_a_model_of_numbers_is_refused(tmp_path: Path, adapter: Any) -> None:
    run(tmp_path / "run", "max_steps=1")
    with pytest.raises(ConfigError, match="ckpt must be of a model of text"):
        adapter.XftrainLM(last(tmp_path / "run"), accelerator="cpu")

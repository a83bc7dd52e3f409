"""An option that scales and caps scores, in a model: refused, trained, sampled and predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.commands.test_preflight import refusal
from tests.models import VOCAB, options, random_tokens, sampled_without_cache
from tests.pairs.reference import attention
from tests.train.runs import last, result_of, run
from xftrain.commands.builder import assemble
from xftrain.config.compose import compose
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import RunConfig
from xftrain.generation.generate import generate
from xftrain.interfaces import AttnBias, AttnCall, Batch, positions_of
from xftrain.loss.full import Full
from xftrain.memory.prediction import predict
from xftrain.model.attn.naive import Naive

OWN = {"_target_": "tests.model.test_scores_in_a_model.Capped", "softcap": 1.5, "scale": 0.7}


class Capped:
    """Causal attention with scores that are scaled and capped."""

    def __init__(self, *, softcap: float = 1.5, scale: float | None = None) -> None:
        self.softcap, self.scale = softcap, scale

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        return AttnBias(seqlens=seqlens, scale=self.scale, softcap=self.softcap)


def chosen(**model: Any) -> RunConfig:
    own = OptionConfig("model.bias", "model/bias", OWN)
    made = options(pos="rope", heads="gqa", **model)
    return replace(made, model=replace(made.model, bias=own))


def gpt() -> Any:
    torch.manual_seed(0)
    model = assemble(chosen().model, VOCAB).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 4  # else scores are too small for a cap to matter
    return model


def test_a_backend_that_cannot_cap_is_refused_before_training() -> None:
    said = refusal(chosen(attn="sdpa"))
    assert "it cannot cap scores, and the bias sets softcap=1.5" in said
    assert said.endswith("Nearest choice that works: model.attn=naive.")


@pytest.mark.parametrize("seqlens", [None, (5, 12, 7)], ids=["rows", "packed"])
def test_the_model_computes_what_the_bias_means(seqlens: tuple[int, ...] | None) -> None:
    model, tokens_BM = gpt(), random_tokens(1, 24)
    positions_1M = positions_of(24, seqlens)
    with torch.no_grad():
        logits = model(tokens_BM, seqlens)
        for bias, is_right in (
            (Capped(softcap=1.5, scale=0.7), True),
            (Capped(softcap=1.5), False),
            (Capped(softcap=1e9, scale=0.7), False),
        ):
            facts = [bias.build(4, seqlens)] * 2
            x_BMD = model.hidden(tokens_BM, positions_1M, facts, attention=attention)
            meant = F.linear(x_BMD, model.head.weight)
            assert torch.allclose(logits, meant, atol=1e-9) == is_right


def test_sampling_with_its_cache_is_sampling_without() -> None:
    model, prompt_BM = gpt(), random_tokens(2, 9)
    made_BM = generate(model, prompt_BM, 12, vocab_size=VOCAB, temperature=0.0)
    assert torch.equal(made_BM, sampled_without_cache(model, prompt_BM, 12))


class _AsItIs(Naive):
    """Run on fake tensors itself."""

    def stand_in(self, call: AttnCall) -> None:
        return None


def test_the_memory_of_capped_scores_is_predicted() -> None:
    settings, tokens_BM = chosen(), random_tokens(4, 130)
    batch = Batch(tokens_BM, tokens_BM, positions_of(130, None))

    def kept(backend: Naive, settings: RunConfig) -> int:
        model = assemble(settings.model, VOCAB)
        model.backend = backend
        cpu = torch.device("cpu")
        return predict(settings, model, Full(), batch, torch.float32, cpu).layers[0].saved

    assert kept(Naive(), settings) == pytest.approx(kept(_AsItIs(), settings), rel=0.02)
    one_more = kept(Naive(), settings) - kept(Naive(), options(pos="rope", heads="gqa"))
    assert one_more == 4 * 4 * 130 * 130 * 4  # B x H x M x M in float32: what tanh saves


def test_a_run_trains_and_is_sampled(tmp_path) -> None:
    own = "+model.bias={" + ",".join(f"{key}:{value}" for key, value in OWN.items()) + "}"
    words = ("~model.bias", own, "model.attn=auto", "max_steps=2")
    assert run(tmp_path / "run", *words)["kernel"] == "naive"
    from xftrain.commands.sample import sample

    ckpt = f"ckpt={last(tmp_path / 'run')}"
    asked = compose(ckpt, "num_tokens=4", own, config_name="sample")
    assert sample(asked, tmp_path / "sampled")["status"] == "completed"
    assert result_of(tmp_path / "sampled")["error"] is None

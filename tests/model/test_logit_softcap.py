"""`model.logit_softcap`: the model, the loss, generation, evaluation and export cap alike."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.models import VOCAB, changed, options, random_tokens
from xftrain.commands import builder
from xftrain.commands.builder import assemble
from xftrain.commands.preflight import check_runnable, first_batch
from xftrain.config.compose import compose, validate
from xftrain.errors import ConfigError
from xftrain.evaluation.likelihood import likelihoods
from xftrain.evaluation.scores import score
from xftrain.generation.cache import Cache
from xftrain.generation.generate import generate
from xftrain.generation.prefill import prefill
from xftrain.generation.step import DecodeStep
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import family_for
from xftrain.interfaces import Batch, LossSums, positions_of
from xftrain.loss.full import Full, cross_entropy_sums
from xftrain.memory.prediction import predict
from xftrain.model.gpt import GPT

CAP = 0.5  # a model with init_std=0.2 has logits of several times that
CPU = torch.device("cpu")


def model_of(cap: float | None = CAP) -> GPT:
    torch.manual_seed(0)
    return assemble(options(logit_softcap=cap, init_std=0.2).model, VOCAB).eval()


@torch.no_grad()
def test_the_logits_of_the_model_are_capped() -> None:
    tokens_BM = random_tokens(12)[None]
    plain, capped = (model_of(cap)(tokens_BM) for cap in (None, CAP))
    assert plain.abs().max() > 4 * CAP
    torch.testing.assert_close(capped, CAP * torch.tanh(plain / CAP))


@torch.no_grad()
def test_generation_reads_capped_logits() -> None:
    model, tokens_M = model_of(), random_tokens(9)
    want_MV = model(tokens_M[None])[0]
    cache = Cache(model, 1, len(tokens_M))
    got = [prefill(model, [tokens_M[:4].tolist()], cache)]
    step = DecodeStep(model, cache)
    got += [step(tokens_M[n : n + 1], torch.tensor([n])) for n in range(4, len(tokens_M))]
    torch.testing.assert_close(torch.cat(got), want_MV[3:], rtol=1e-4, atol=1e-5)
    hot = {"vocab_size": VOCAB, "temperature": 0.2, "seed": 1}
    tokens = [generate(model_of(cap), tokens_M[None], 12, **hot) for cap in (None, CAP)]
    assert not torch.equal(*tokens)


@torch.no_grad()
def test_log_likelihoods_are_those_of_the_capped_logits() -> None:
    model, tokens_M = model_of(), random_tokens(13)
    log_probs_MV = model(tokens_M[None, :-1])[0].log_softmax(dim=-1)
    log_probs_M = log_probs_MV.gather(1, tokens_M[1:, None])[:, 0]
    pair = (tokens_M[:5].tolist(), tokens_M[5:].tolist())
    (found,) = likelihoods(model, [pair], 100, None)
    assert found.log_likelihood == pytest.approx(float(log_probs_M[4:].sum()), rel=1e-5)
    batch = Batch(tokens_M[None, :-1], tokens_M[None, 1:], positions_of(12, None))
    torch.testing.assert_close(score(model, batch).loss_N.float(), -log_probs_M)
    # and the loss of training
    handle = model.prepare(1, 12)
    x_ND = model.hidden(batch.tokens_BM, batch.positions_1M, handle)[0]
    labels_N = batch.labels_BM[0]
    sums = Full()(x_ND, model.head.weight, labels_N, with_accuracy=True, softcap=CAP)
    assert float(sums.loss) == pytest.approx(-float(log_probs_M.sum()), rel=1e-5)


def test_export_refuses_it_with_the_reason() -> None:
    kinds = {"pos": "rope", "norm": "rmsnorm"}
    assert family_for(describe(assemble(options(**kinds).model, VOCAB))).ARCHITECTURE
    with pytest.raises(ConfigError, match=r"does not cap logits \(model.logit_softcap=null\)"):
        family_for(describe(assemble(options(**kinds, logit_softcap=30.0).model, VOCAB)))


class Uncapped:
    """A loss of a user's own, from before there was a cap."""

    def unsupported(self, device):
        return []

    def __call__(self, x_ND, weight_VD, labels_N, *, with_accuracy) -> LossSums:
        logits_NV = F.linear(x_ND, weight_VD)
        none = Full().regularization
        return cross_entropy_sums(logits_NV, labels_N, none, with_accuracy=with_accuracy)


def test_a_loss_of_ones_own_that_takes_no_cap_is_refused_and_otherwise_called_as_ever() -> None:
    for cap in (None, 30.0):
        cfg = changed(
            options(logit_softcap=cap), {"loss": {"_target_": f"{__name__}.{Uncapped.__name__}"}}
        )
        batch = first_batch(builder.build_data(cfg), 0)
        given = (cfg, builder.build_loss(cfg), 64, batch, CPU, torch.float32)
        if cap is None:
            check_runnable(*given)
            continue
        with pytest.raises(ConfigError, match="does not declare takes_softcap, got 30.0: set it"):
            check_runnable(*given)


def test_the_predicted_memory_has_the_tanh_that_the_cap_saves() -> None:
    peaks = []
    for cap in (None, CAP):
        cfg = changed(options(logit_softcap=cap), {"loss": "full"})
        batch = first_batch(builder.build_data(cfg), 0)
        model = assemble(cfg.model, VOCAB)
        loss = builder.build_loss(cfg)
        peaks.append(predict(cfg, model, loss, batch, torch.float32, CPU).loss)
    assert peaks[1] - peaks[0] == 4 * batch.num_tokens * VOCAB


def test_a_cap_is_a_positive_number() -> None:
    with pytest.raises(ConfigError, match="model.logit_softcap must be"):
        validate(compose("model.logit_softcap=0"))

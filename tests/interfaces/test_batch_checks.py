"""What a data source, a bias or a loss of one's own brings is checked, under python -O too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import gpt, random_tokens, with_bias
from xftrain.benchmark.cells import attention_cell
from xftrain.errors import ConfigError
from xftrain.generation.generate import generate
from xftrain.interfaces import AttnBias, Batch, LossSums, positions_of
from xftrain.interfaces.batch_checks import document_reasons
from xftrain.model.bias.alibi import slopes
from xftrain.model.heads._qkv import QKVProjection

TOKENS = torch.zeros(2, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels_BM": TOKENS[:, :5]}, r"got \(2, 6\), \(2, 5\) and \(1, 6\)"),
        ({"positions_1M": TOKENS}, r"and \(2, 6\): correct the data source"),
        ({"positions_1M": torch.arange(5)[None]}, r"and \(1, 5\)"),
        ({"tokens_BM": TOKENS[0], "labels_BM": TOKENS[0]}, r"got \(6,\)"),
        ({"seqlens": (6, 6)}, "sum of 12 for 2 x 6 tokens"),
        (
            {"tokens_BM": TOKENS[:1], "labels_BM": TOKENS[:1], "seqlens": (6, 0)},
            "at least 1, got 0",
        ),
        (
            {"tokens_BM": TOKENS[:1], "labels_BM": TOKENS[:1], "seqlens": (4, 1)},
            "sum of 5 for 1 x 6 tokens",
        ),
        ({"tokens_BM": TOKENS[:0], "labels_BM": TOKENS[:0]}, "at least one token, got 0 x 6"),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    batch = {"tokens_BM": TOKENS, "labels_BM": TOKENS, "positions_1M": positions_of(6, None)}
    Batch(**batch)
    with pytest.raises(ConfigError, match=said):
        Batch(**(batch | change))


def test_lengths_may_be_numpys() -> None:
    assert not document_reasons((np.int64(4), np.int32(2)), 1, 6)
    assert AttnBias(window=np.int64(3)).window == 3  # type: ignore[arg-type]


def test_heads_that_do_not_divide_are_refused() -> None:
    for sizes in ((10, 3, 1), (12, 4, 3), (12, 0, 1), (12, 4, 0)):
        with pytest.raises(ConfigError, match="must be a multiple"):
            QKVProjection(*sizes, False)
    with pytest.raises(ConfigError, match="at least one query head"):
        slopes(0)


def test_a_loss_that_counts_no_guesses_is_refused() -> None:
    one = torch.ones(())
    with pytest.raises(ConfigError, match="must return the number of correct predictions"):
        LossSums(one, one, None).stacked()
    assert LossSums(one, one, one).stacked().tolist() == [1.0, 1.0, 1.0]


class _OfOneSize:
    """A bias of one's own that is made for rows of 8 positions."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        return AttnBias(seqlens=seqlens, additive_HMM=torch.zeros(1, 8, 8))


def test_a_bias_of_one_size_is_refused_where_the_model_meets_another() -> None:
    model = gpt()
    with_bias(model, lambda _: _OfOneSize())
    assert model(random_tokens(1, 8)).shape == (1, 8, 64)
    with pytest.raises(ConfigError, match="model.bias does not fit the batch"):
        model(random_tokens(1, 9))
    with pytest.raises(ConfigError, match="model.bias adds a tensor of the size of one batch"):
        generate(model, random_tokens(1, 4), 2, vocab_size=64)


class _Forgets:
    """A bias of one's own that loses the documents of a packed row, or makes up others."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        return self.change(seqlens)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda seqlens: AttnBias(), r"given to it, \(6, 4\), got None: pass them on"),
        (lambda seqlens: AttnBias(seqlens=seqlens[::-1]), r"\(6, 4\), got \(4, 6\)"),
        (lambda seqlens: AttnBias(seqlens=list(seqlens)), "got a list of "),
        (
            lambda seqlens: AttnBias(seqlens=(1,) * 10),
            r"\(1, 1, 1, 1, 1, 1, 1, 1, \.\.\.\), 10 doc",
        ),
        (lambda seqlens: None, "must return an xftrain.interfaces.AttnBias, got None"),
        (lambda seqlens: AttnBias(seqlens=seqlens, slopes=[0.5]), "slopes must be a tuple of fin"),
        (lambda seqlens: AttnBias(seqlens=seqlens, slopes=("a",)), r"got \('a',\)"),
        (lambda seqlens: AttnBias(additive_HMM=np.zeros((1, 2, 2))), "got a value of type ndarray"),
    ],
)
def test_a_bias_without_the_documents_of_the_batch_is_refused(change: Any, got: str) -> None:
    model = gpt(pos="none")
    with_bias(model, lambda _: _Forgets(change))
    with pytest.raises(ConfigError, match=got) as refused:
        model(random_tokens(1, 10), seqlens=(6, 4))
    assert str(refused.value).startswith("model.bias: ")


def test_documents_that_no_batch_has_are_refused_in_sampling_and_in_the_benchmark() -> None:
    model = gpt()
    with_bias(model, lambda _: _Forgets(lambda _: AttnBias(seqlens=(4, 4))))
    with pytest.raises(ConfigError, match=r"_Forgets.build must return .* None, got \(4, 4\)"):
        generate(model, random_tokens(1, 4), 2, vocab_size=64)
    with pytest.raises(ConfigError, match=r"_Forgets.build must return .* None, got \(4, 4\)"):
        _ = model.windows
    forgets = {
        "_target_": f"{__name__}._Forgets",
        "change": {"_target_": f"{__name__}._no_documents"},
    }
    cell = attention_cell(
        "parity",
        {"name": "naive"},
        forgets,
        {"name": "mha"},
        rows=1,
        num_heads=2,
        head_dim=8,
        seqlens=(6, 4),
        dtype="float32",
        device="cpu",
    )
    with pytest.raises(ConfigError, match=r"_Forgets.build must return .* \(6, 4\), got None"):
        cell.call()


def _no_documents() -> Callable[[Any], AttnBias]:
    return lambda _: AttnBias()

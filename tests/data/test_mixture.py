"""data=mixture: rows of several sources by weight, one vocabulary, and a loss of each source."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.test_text import equal
from xftrain.data.mixture import Mixture
from xftrain.data.text import Text
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL

LETTERS = {"code": "abcde", "prose": "vwxyz", "chat": "klmno"}
WEIGHTS = {"code": 6, "prose": 3, "chat": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources, each in letters of its own, of very different sizes."""
    folder = tmp_path_factory.mktemp("sources")
    draw = np.random.default_rng(0)
    for (name, letters), num_files in zip(LETTERS.items(), (40, 20, 60), strict=True):
        (folder / name).mkdir()
        for number in range(num_files):
            text = "".join(draw.choice(list(letters), draw.integers(5, 90)))
            (folder / name / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture
def mixture(folder: Path) -> Any:
    def build(seq=16, batch_size=4, seed=0, world_size=1, names=tuple(LETTERS), **options):
        sources = {n: {"path": str(folder / n), "weight": WEIGHTS[n]} for n in names}
        options = {"sources": sources, "cache_dir": str(folder / "cache")} | options
        return Mixture(seq, batch_size, seed, world_size, **options)

    return build


def source_of(row) -> str:
    """The source by the letters of a row."""
    letters = {chr(token) for token in row.tolist() if token < 256}
    (name,) = (name for name, of in LETTERS.items() if letters & set(of))
    assert letters <= set(LETTERS[name])
    return name


@pytest.mark.parametrize("packing", [False, True, "best_fit"])
def test_batches_are_a_pure_function_of_seed_step_and_rank(mixture, packing) -> None:
    one, other = (mixture(world_size=2, packing=packing) for _ in range(2))
    steps = [0, 1, 7, 300, 5000]
    forward = {(s, r): one.batch("train", s, r) for s in steps for r in (0, 1)}
    for step, rank in reversed(forward):
        assert equal(other.batch("train", step, rank), forward[step, rank])
    assert not equal(forward[0, 0], forward[0, 1])
    another = mixture(world_size=2, packing=packing, seed=1).batch("train", 0, 0)
    assert not equal(forward[0, 0], another)
    assert equal(pickle.loads(pickle.dumps(one)).batch("train", 3), one.batch("train", 3))


@pytest.mark.parametrize("packing", [False, True, "best_fit"])
def test_rows_have_the_shares_of_the_weights(mixture, packing) -> None:
    data = mixture(packing=packing)
    counts = dict.fromkeys(LETTERS, 0)
    for step in range(250):
        for row in data.batch("train", step).tokens_BM.view(-1, 16):
            if (row != 256).any():
                counts[source_of(row)] += 1
    for name, weight in WEIGHTS.items():
        assert abs(counts[name] - weight / 10 * sum(counts.values())) < 10  # 1000 rows


def test_ranks_share_the_rows_of_one_long_batch(mixture) -> None:
    alone, three = mixture(), mixture(world_size=3)
    for step in range(9):
        assert equal(alone.batch("train", step), three.batch("train", step // 3, step % 3))


def test_each_source_has_epochs_of_its_own(mixture) -> None:
    """The rows of a source are those that it has with another weight or beside other sources."""

    def rows(data, name, num):
        found = []
        for step in range(1000):
            for row in data.batch("train", step).tokens_BM:
                if source_of(row) == name:
                    found.append(row.tolist())
            if len(found) >= num:
                return found[:num]
        raise AssertionError

    assert rows(mixture(), "prose", 60) == rows(mixture(names=("prose", "chat")), "prose", 60)


def test_validation_batches_are_of_one_source_each_and_take_turns(mixture) -> None:
    data = mixture(num_val_batches=3)
    assert data.num_val_batches == len(data.val_sources) <= 9
    assert data.val_sources[:3] == ("chat", "code", "prose")
    for step, name in enumerate(data.val_sources):
        rows = data.batch("val", step).tokens_BM
        assert {source_of(row) for row in rows} == {name}
    other = mixture(num_val_batches=3, seed=7, world_size=2)
    assert equal(other.batch("val", 1, rank=1), data.batch("val", 1))


def test_a_bpe_is_trained_on_all_sources_once(mixture, folder, tmp_path) -> None:
    data = mixture(tokenizer="bpe", vocab_size=300, cache_dir=str(tmp_path))
    learned = [set(token.decode()) for token in data.vocabulary.spellings if len(token) > 1]
    assert all(any(token <= set(of) for token in learned) for of in LETTERS.values())
    again = mixture(tokenizer="bpe", vocab_size=300, cache_dir=str(tmp_path))
    assert again.digest() == data.digest()
    assert equal(again.batch("train", 5), data.batch("train", 5))
    one = Text(16, 4, 0, 1, path=str(folder / "code"), tokenizer="bpe", vocab_size=300)
    assert one.vocabulary.digest() != data.vocabulary.digest()


def test_digest_covers_all_sources_and_their_names(mixture, folder) -> None:
    paths = {n: {"path": str(folder / n), "weight": 1} for n in ("code", "prose")}
    swapped = dict(zip(paths, reversed(paths.values()), strict=True))
    reordered = dict(reversed(paths.items()))
    digests = [mixture(sources=s).digest() for s in (paths, swapped, reordered)]
    assert digests[0] == digests[2] != digests[1]
    assert mixture().digest() not in digests


def test_baseline_is_given_for_each_source(mixture) -> None:
    figures = mixture().baseline()
    assert figures.keys() == {
        "val/bits_per_byte_bigram",
        *(f"val/{name}/bits_per_byte_bigram" for name in LETTERS),
    }
    assert min(figures.values()) < figures["val/bits_per_byte_bigram"] < max(figures.values())


def test_best_fit_pads_and_cuts_nothing(mixture, caplog) -> None:
    caplog.set_level("INFO")
    words = {"seq": 48, "names": ("code", "prose")}
    data = mixture(**words, packing="best_fit")
    assert 0 < data.share_padding < 0.2 and data.share_cut == 0
    batch = data.batch("train", 0)
    assert (batch.labels_BM == IGNORED_LABEL).sum() == batch.num_padding
    assert mixture(**words, packing=False).share_cut > 0.1
    assert "data.sources.code: 0.6667 of the tokens" in caplog.text


def test_a_source_without_text_is_named(mixture, folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    sources = {"void": {"path": str(tmp_path / "empty"), "weight": 1}}
    with pytest.raises(ConfigError, match=r"data\.sources\.void"):
        mixture(sources=sources)
    (tmp_path / "tiny").mkdir()
    for number in range(3):
        (tmp_path / "tiny" / f"{number}").write_text(f"{number}")
    with pytest.raises(ConfigError, match=r"data\.sources\.tiny\.path must give at least"):
        mixture(sources={"tiny": {"path": str(tmp_path / "tiny"), "weight": 1}})


def test_batches_have_the_types_of_the_interface(mixture) -> None:
    plain, packed = mixture().batch("train", 0), mixture(packing=True).batch("train", 0)
    assert plain.tokens_BM.shape == (4, 16) and plain.seqlens is None
    assert packed.tokens_BM.shape == (1, 64) and sum(packed.seqlens) == 64
    assert all(b.tokens_BM.dtype == torch.int64 for b in (plain, packed))

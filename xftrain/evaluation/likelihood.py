"""Log-likelihoods of continuations, in batches without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from xftrain.evaluation.scores import score
from xftrain.interfaces import IGNORED_LABEL, Batch, Vocabulary, positions_of
from xftrain.model.gpt import GPT


class Likelihood(NamedTuple):
    """How likely a model finds a continuation.

    Attributes:
        log_likelihood: summed log-probability of its tokens, in nats.
        is_greedy: whether each of its tokens is the most likely one.
        is_cut: whether the context was cut on the left, as the model reads too few.
    """

    log_likelihood: float
    is_greedy: bool
    is_cut: bool


def split_tokens(
    vocabulary: Vocabulary, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """The tokens of a context and of what follows it, as lm-evaluation-harness cuts them.

    Both texts are encoded together, since a token may cross their border, and blanks at the end of
    the context belong to the continuation. Without a context it is the document separator.
    """
    stripped = context.rstrip()
    if stripped:
        continuation, context = context[len(stripped) :] + continuation, stripped
    separator: int | None = getattr(vocabulary, "separator", None)
    begin = [] if separator is None else [separator]
    if not context:
        return begin, vocabulary.encode(continuation)
    num_context = len(vocabulary.encode(context))
    whole = vocabulary.encode(context + continuation)
    return [*begin, *whole[:num_context]], whole[num_context:]


def likelihoods(
    model: GPT,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_tokens: int,
    max_positions: int | None,
) -> list[Likelihood]:
    """The log-likelihood of each continuation after its context, in the order of the pairs.

    Args:
        model: the model, in evaluation mode.
        pairs: tokens of context and continuation; neither is empty.
        max_tokens: maximum number of tokens that are computed at once.
        max_positions: number of positions that the model reads at most; None for no limit.
    """
    rows = [_row(max_positions, context, continuation) for context, continuation in pairs]
    found: dict[int, Likelihood] = {}
    device = model.head.weight.device
    for indices in _groups([len(tokens) - 1 for tokens, _, _ in rows], max_tokens):
        tokens_BM = torch.tensor([rows[index][0] for index in indices])
        labels_BM = tokens_BM[:, 1:].clone()
        for row, index in enumerate(indices):
            labels_BM[row, : -rows[index][1]] = IGNORED_LABEL
        num_positions = tokens_BM.shape[1] - 1
        batch = Batch(tokens_BM[:, :-1], labels_BM, positions_of(num_positions, None))
        scores = score(model, batch.to(device))
        sums = torch.bincount(scores.documents_N, -scores.loss_N, minlength=len(indices))
        misses = torch.bincount(
            scores.documents_N, (~scores.is_correct_N).double(), minlength=len(indices)
        )
        for row, index in enumerate(indices):
            greedy = bool(misses[row] == 0)
            found[index] = Likelihood(float(sums[row]), greedy, rows[index][2])
    return [found[index] for index in range(len(rows))]


def _row(
    limit: int | None, context: Sequence[int], continuation: Sequence[int]
) -> tuple[list[int], int, bool]:
    """Tokens as many as the model can read, the number of labels, and whether some were cut."""
    assert context and continuation
    tokens = [*context, *continuation]
    kept = tokens if limit is None else tokens[-(limit + 1) :]
    return kept, min(len(continuation), len(kept) - 1), len(kept) < len(tokens)


def _groups(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """The indices of rows of equal length, which need no padding, longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    group: list[int] = []
    for index in order:
        is_full = (len(group) + 1) * lengths[index] > max_tokens
        if group and (lengths[index] != lengths[group[0]] or is_full):
            yield group
            group = []
        group.append(index)
    if group:
        yield group

"""The gradient of a step is that of one batch with all labels of its micro-batches and ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.train.runs import last, model_and_data, rows_of, run, same_weights, weights_of
from tests.train.uneven import write_uneven
from xftrain.callbacks import metrics
from xftrain.errors import RunError
from xftrain.interfaces import IGNORED_LABEL, LossSums
from xftrain.loss.chunked import Chunked
from xftrain.loss.full import Full
from xftrain.loss.fused import Fused
from xftrain.optim.adafactor import Adafactor
from xftrain.optim.adamw import AdamW
from xftrain.schedule.cosine import Cosine
from xftrain.train import distributed, step_sums
from xftrain.train.step_sums import StepSums

TOKENS, VOCAB, DIM = 12, 7, 5
LOSSES = {"full": Full(), "chunked": Chunked(chunk_tokens=5), "fused": Fused(chunk_tokens=5)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(DIM, DIM, generator=draw))
        self.head = nn.Parameter(torch.randn(VOCAB, DIM, generator=draw))

    def sums(self, loss, x, labels) -> LossSums:
        return loss(x @ self.inner, self.head, labels, with_accuracy=True)


def accumulated(loss, parts: list[list[tuple[Tensor, Tensor]]], scale: float) -> list[Net]:
    """The ranks' models after a step of `parts[rank][batch]`, as Lightning and DDP make it."""
    num_ranks, num_batches = len(parts), len(parts[0])
    all_sums = [Net().sums(loss, x, y) for rank in parts for x, y in rank]
    total = torch.stack([one.stacked() for one in all_sums]).sum(0).detach()
    nets = [Net() for _ in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: num_ranks)
        patch.setattr(distributed, "all_reduce_sum", lambda own: total)
        patch.setattr(distributed, "all_reduce_max", lambda own: own)
        steps = []
        for net, rank in zip(nets, parts, strict=True):
            optimizer = torch.optim.SGD(net.parameters())
            trainer = SimpleNamespace(accumulate_grad_batches=num_batches, optimizers=[optimizer])
            stream = SimpleNamespace(batch=lambda index: SimpleNamespace(num_tokens=TOKENS))
            module = SimpleNamespace(trainer=trainer, stream=stream, device=torch.device("cpu"))
            steps.append((StepSums(module), optimizer))
            for index, (x, labels) in enumerate(rank):
                part = steps[-1][0].add(net.sums(loss, x, labels), index)
                (part / num_batches * scale).backward()
        for weights in zip(*(net.parameters() for net in nets), strict=True):
            mean = torch.stack([weight.grad for weight in weights]).mean(0)
            for weight in weights:
                weight.grad = mean.clone()
        for step, optimizer in steps:
            step.rescale(optimizer)
            step.rescale(optimizer)  # done once
    return nets


@given(
    counts=st.integers(1, 4).flatmap(
        lambda k: st.lists(
            st.lists(st.integers(0, TOKENS), min_size=k, max_size=k), min_size=1, max_size=3
        )
    ),
    name=st.sampled_from(sorted(LOSSES)),
    scale=st.sampled_from([1.0, 2.0**16]),
)
@example(counts=[[TOKENS, 1]], name="full", scale=1.0)
@example(counts=[[0]], name="fused", scale=1.0)
@example(counts=[[0, 0], [0, 0]], name="fused", scale=2.0**16)
@example(counts=[[0], [5]], name="fused", scale=1.0)
def test_parts_of_a_step_are_one_large_batch(counts, name, scale):
    # accumulation was a mean of means: with 256 and 8 labels the gradient was 9 times off
    draw = torch.Generator().manual_seed(sum(map(sum, counts)))
    parts = []
    for rank in counts:
        made = []
        for num_labels in rank:
            labels = torch.randint(VOCAB, (TOKENS,), generator=draw)
            labels[num_labels:] = IGNORED_LABEL
            made.append((torch.randn(TOKENS, DIM, generator=draw), labels))
        parts.append(made)
    nets = accumulated(LOSSES[name], parts, scale)

    x, labels = (torch.cat(tensors) for tensors in zip(*sum(parts, []), strict=True))
    whole = Net().double()
    logits = (x.double() @ whole.inner @ whole.head.t())[labels != IGNORED_LABEL]
    if len(logits):
        F.cross_entropy(logits, labels[labels != IGNORED_LABEL]).backward()
    for net in nets:
        for mine, right in zip(net.parameters(), whole.parameters(), strict=True):
            want = torch.zeros_like(right) if right.grad is None else right.grad
            assert (mine.grad / scale - want).norm() <= 2e-6 * want.norm()


@pytest.mark.parametrize("num_batches", [1, 2, 3, 7])
def test_where_every_token_has_a_label_the_factor_is_one(num_batches):
    # so that such a run is bitwise what Lightning alone makes
    x, labels = torch.randn(TOKENS, DIM), torch.randint(VOCAB, (TOKENS,))
    (net,) = accumulated(Full(), [[(x, labels)] * num_batches], 1.0)
    plain = Net()
    for _ in range(num_batches):
        (plain.sums(Full(), x, labels).loss / TOKENS / num_batches).backward()
    assert torch.equal(net.inner.grad, plain.inner.grad)


@pytest.fixture
def uneven(tmp_path):
    """The folder that has the option `data=uneven`."""
    return {"config_dir": write_uneven(tmp_path / "own")}


STEPS = ("data=uneven", "max_steps=2", "trainer.log_every_n_steps=1", "model.dropout=0")


@pytest.mark.parametrize(
    ("num_batches", "words"),
    [
        (1, ("loss=full",)),
        (3, ("loss=fused", "trainer.gradient_clip_val=0.5")),
        (2, ("loss=chunked", "optim=adafactor")),
        (2, ("loss=full", "trainer.precision=16-mixed")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_run_makes_the_steps_of_all_labels(tmp_path, monkeypatch, uneven, num_batches, words):
    is_half = "trainer.precision=16-mixed" in words
    if is_half:  # Lightning's own is for GPUs alone
        words = (*words[:1],)
        half = MixedPrecision("16-mixed", "cpu")
        with_half(monkeypatch, half)
    words = (*STEPS, *words, f"trainer.accumulate_grad_batches={num_batches}")
    run(tmp_path / "run", *words, **uneven)
    model, data = model_and_data(*words, **uneven)
    optim = Adafactor() if "optim=adafactor" in words else AdamW()
    optimizer, schedule = optim.build(model, Cosine(), max_steps=2)
    seen: dict[str, dict[int, float]] = {name: {} for name in ("loss", "accuracy", "grad_norm")}
    for step in (1, 2):
        batches = [data.batch("train", (step - 1) * num_batches + n) for n in range(num_batches)]
        logits = torch.cat([model(batch.tokens_BM).flatten(0, 1) for batch in batches])
        labels = torch.cat([batch.labels_BM.flatten() for batch in batches])
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL)
        optimizer.zero_grad()
        loss.backward()
        limit = 0.5 if "trainer.gradient_clip_val=0.5" in words else 1.0
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        counted = labels != IGNORED_LABEL
        seen["loss"][step], seen["grad_norm"][step] = loss.item(), norm.item()
        seen["accuracy"][step] = (logits.argmax(-1) == labels)[counted].float().mean().item()
        optimizer.step()
        schedule.step()
    relative = 5e-3 if is_half else 1e-5
    for name in ("loss", "grad_norm"):
        assert rows_of(tmp_path / "run", f"train/{name}") == pytest.approx(
            seen[name], rel=relative
        ), name
    if not is_half:
        assert rows_of(tmp_path / "run", "train/accuracy") == pytest.approx(seen["accuracy"])
        for name, weight in weights_of(last(tmp_path / "run")).items():
            torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-4, atol=2e-6)


def with_half(monkeypatch, plugin: MixedPrecision) -> None:
    from xftrain.commands import train

    build = train.build_trainer

    def built(*args, **kwargs):
        trainer = build(*args, **kwargs)
        trainer.strategy.precision_plugin = plugin
        return trainer

    monkeypatch.setattr(train, "build_trainer", built)


def two_ranks(monkeypatch, other) -> None:
    """The sums of a step are those of two ranks, the second of which is made by `other`."""

    def summed(own: Tensor) -> Tensor:
        return own + other(own)

    two = SimpleNamespace(
        world_size=lambda: 2, all_reduce_sum=summed, all_reduce_max=lambda own: own
    )
    monkeypatch.setattr(step_sums, "distributed", two)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_loss_that_is_not_finite_on_one_rank_alone_stops_all(tmp_path, monkeypatch, num_batches):
    # each rank would decide by its own loss, and their weights would part
    steps = []

    def other(own: Tensor) -> Tensor:
        steps.append(len(steps) + 1)
        is_bad = torch.tensor([steps[-1] == 3, False, False][: len(own)])
        return torch.where(is_bad, torch.inf, own)

    two_ranks(monkeypatch, other)
    with pytest.raises(RunError, match="of step 3 is not finite"):
        run(tmp_path, f"trainer.accumulate_grad_batches={num_batches}")


def test_a_rank_with_the_same_batches_changes_nothing(tmp_path, monkeypatch):
    words = ("trainer.accumulate_grad_batches=2", "max_steps=3")
    run(tmp_path / "one", *words)
    two_ranks(monkeypatch, lambda own: own)
    monkeypatch.setattr(metrics, "all_reduce_sum", lambda own: 2 * own)
    run(tmp_path / "two", *words)
    # the gradient of two ranks is their mean, which is this rank's
    assert same_weights(last(tmp_path / "one"), last(tmp_path / "two"))
    for name in ("train/loss", "train/accuracy"):
        assert rows_of(tmp_path / "one", name) == rows_of(tmp_path / "two", name)


def test_bfloat16_copies_of_weights_change_nothing(tmp_path, monkeypatch, uneven, adamw_on_cpu):  # noqa: F811
    words = (*STEPS, "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=3")
    exact = (*words, "trainer.gradient_clip_val=null")
    run(tmp_path / "with", *exact, **uneven)
    unknown = "xftrain.train.bf16_weights.weight_modifiers"
    monkeypatch.setattr(unknown, lambda parts: ["Somebody"])
    run(tmp_path / "without", *exact, **uneven)
    assert same_weights(last(tmp_path / "with"), last(tmp_path / "without"))


class Doubles(Callback):
    """Sets two batches per step from the second step on."""

    def on_train_batch_end(self, trainer, *args):
        trainer.accumulate_grad_batches = 2


def test_a_callback_may_change_the_number_of_batches_between_steps(tmp_path):
    # Lightning sets gradients to zero at multiples of the number alone, and the next step began
    # with the clipped gradient of the one before
    words = ("max_steps=2", "trainer.log_every_n_steps=1")
    run(tmp_path / "plain", *words)
    doubles = f"+callbacks.doubles={{_target_: {__name__}.Doubles}}"
    run(tmp_path / "changed", *words, doubles)
    plain, changed = (rows_of(tmp_path / name, "train/grad_norm") for name in ("plain", "changed"))
    assert changed == pytest.approx(plain, rel=1e-6)

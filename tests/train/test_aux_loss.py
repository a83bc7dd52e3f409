"""The auxiliary loss of a feed-forward: minimized with the cross-entropy, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.train import experts
from tests.train.graph_stand_in import Again
from tests.train.runs import last, model_and_data, rows_of, run, same_weights, small, weights_of
from tests.train.test_step_sums import two_ranks
from tests.train.uneven import write_uneven
from xftrain.callbacks import metrics
from xftrain.config.compose import validate
from xftrain.errors import ConfigError, RunError
from xftrain.generation.generate import generate
from xftrain.interfaces import IGNORED_LABEL, Batch, LossSums
from xftrain.loss.full import Full
from xftrain.memory.prediction import predict
from xftrain.model.gpt import GPT
from xftrain.optim.adamw import AdamW
from xftrain.schedule.cosine import Cosine


def moe(kind: str = "Experts") -> tuple[str, str]:
    return "~model.ffn", f"+model.ffn={{_target_: {experts.__name__}.{kind}}}"


STEPS = (*moe(), "model.num_layers=2", "trainer.log_every_n_steps=1", "max_steps=2")


def sums_of(model: GPT, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """Summed cross-entropy, the layers' auxiliary losses added up, and the number of labels."""
    losses: list[Tensor] = []
    handles = [
        block.ffn.register_forward_hook(lambda _, __, made: losses.append(made[1]))  # type: ignore[union-attr]
        for block in model.blocks
    ]
    logits = model(batch.tokens_BM).flatten(0, 1)
    for handle in handles:
        handle.remove()
    labels = batch.labels_BM.flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return loss, torch.stack(losses).sum(), int((labels != IGNORED_LABEL).sum())


@pytest.mark.parametrize("num_batches", [1, 3])
def test_each_batch_of_a_step_counts_by_its_labels(tmp_path, num_batches: int) -> None:
    uneven = {"config_dir": write_uneven(tmp_path / "own")}
    words = (*STEPS, "data=uneven", f"trainer.accumulate_grad_batches={num_batches}")
    result = run(tmp_path / "run", *words, **uneven)
    model, data = model_and_data(*words, **uneven)
    optimizer, schedule = AdamW().build(model, Cosine(), max_steps=2)
    names = ("train/loss", "train/aux_loss", "train/grad_norm")
    seen: dict[str, dict[int, float]] = {name: {} for name in names}
    for step in (1, 2):
        parts = [
            sums_of(model, data.batch("train", (step - 1) * num_batches + n))
            for n in range(num_batches)
        ]
        num_labels = sum(count for _, _, count in parts)
        loss = torch.stack([one for one, _, _ in parts]).sum() / num_labels
        aux = torch.stack([one * count for _, one, count in parts]).sum() / num_labels
        optimizer.zero_grad()
        (loss + aux).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for name, value in zip(names, (loss, aux, norm), strict=True):
            seen[name][step] = value.item()
        optimizer.step()
        schedule.step()
    for name in names:
        assert rows_of(tmp_path / "run", name) == pytest.approx(seen[name], rel=1e-5), name
    for name, weight in weights_of(last(tmp_path / "run")).items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-4, atol=2e-6)
    assert result["metrics"]["train/aux_loss"] == pytest.approx(seen["train/aux_loss"][2])


def test_validation_is_of_the_cross_entropy_alone(tmp_path) -> None:
    result = run(tmp_path, *STEPS, "optim.lr=1e-30", "optim.weight_decay=0")
    model, data = model_and_data(*STEPS)
    with torch.no_grad():
        parts = [sums_of(model, data.batch("val", n)) for n in range(data.num_val_batches)]
    mean = sum(float(loss) for loss, _, _ in parts) / sum(count for *_, count in parts)
    assert result["metrics"]["val/loss"] == pytest.approx(mean, rel=1e-6)
    assert min(float(aux) for _, aux, _ in parts) > 0.9  # two layers, at least 0.5 each
    assert not [name for name in result["metrics"] if "aux" in name and "val" in name]


@pytest.mark.parametrize("how", ["true", "ffn"])
def test_what_is_recomputed_is_not_counted_twice(tmp_path, how: str) -> None:
    run(tmp_path / "plain", *STEPS)
    run(tmp_path / "again", *STEPS, f"model.activation_checkpointing={how}")
    assert same_weights(last(tmp_path / "plain"), last(tmp_path / "again"))
    rows = [rows_of(tmp_path / name, "train/aux_loss") for name in ("plain", "again")]
    assert rows[0] == rows[1] and len(rows[0]) == 2


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_rank_with_the_same_batches_changes_nothing(tmp_path, monkeypatch, num_batches) -> None:
    words = (*STEPS, f"trainer.accumulate_grad_batches={num_batches}")
    run(tmp_path / "one", *words)
    two_ranks(monkeypatch, lambda own: own)
    monkeypatch.setattr(metrics, "all_reduce_sum", lambda own: 2 * own)
    run(tmp_path / "two", *words)
    assert same_weights(last(tmp_path / "one"), last(tmp_path / "two"))
    rows = [rows_of(tmp_path / name, "train/aux_loss") for name in ("one", "two")]
    assert rows[0] == pytest.approx(rows[1])


def test_a_compiled_model_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # aot_eager: what is traced is run without a compiler
    model, data = model_and_data(*STEPS)
    batch = data.batch("train", 0)

    def made() -> list[Tensor]:
        handles = model.prepare(*batch.shape_BM)
        x_BMD, aux = model.hidden_and_aux(batch.tokens_BM, batch.positions_1M, handles)
        assert aux is not None
        return [aux, *torch.autograd.grad(x_BMD.square().mean() + aux, [*model.parameters()][1:-1])]

    plain = made()
    for part in (*model.blocks, model.norm):
        part.compile(backend="aot_eager", fullgraph=True)
    for one, other in zip(plain, made(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_graphed_step_has_it(tmp_path, graphs_on_cpu, monkeypatch) -> None:
    monkeypatch.setattr(Again, "has_aux", True)
    words = (*STEPS, "max_steps=6")
    run(tmp_path / "plain", *words)
    run(tmp_path / "graphed", *words, "compile=cudagraphs")
    assert Again.made == 4
    rows = [rows_of(tmp_path / name, "train/aux_loss") for name in ("plain", "graphed")]
    assert rows[1] == pytest.approx(rows[0], rel=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "how", ["compile=true", "compile=cudagraphs", "trainer.precision=16-mixed"]
)
def test_on_a_gpu(tmp_path, how: str) -> None:
    words = ("trainer=gpu", "model.attn=sdpa", "trainer.precision=bf16-mixed", *STEPS)
    for name, more in (("plain", ()), ("other", (how,))):
        run(tmp_path / name, *words, "max_steps=6", *more)
    for name in ("train/aux_loss", "train/loss"):
        plain, other = (rows_of(tmp_path / made, name) for made in ("plain", "other"))
        assert other == pytest.approx(plain, rel=0.05), name


def test_one_that_is_not_finite_stops_the_run_or_is_left_out(tmp_path, monkeypatch) -> None:
    words = (*moe("Spoilt"), "trainer.log_every_n_steps=1", "max_steps=4")
    monkeypatch.setattr(experts.Spoilt, "calls", 0)
    with pytest.raises(RunError, match="the loss or the gradient of step 3 is not finite"):
        run(tmp_path / "stopped", *words)
    monkeypatch.setattr(experts.Spoilt, "calls", 0)
    run(tmp_path / "skipped", *words, "on_nonfinite=skip")
    steps = rows_of(tmp_path / "skipped", "train/aux_loss")
    assert [step for step, value in steps.items() if math.isfinite(value)] == [1, 2, 4]


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("Triple", r"\[8, 16, 32\], .* of \[\], .* of \[8, 16, 32\]"),
        ("Vector", r"\[8, 16, 32\], .* of \[8, 16\]"),
    ],
)
def test_anything_else_is_refused(tmp_path, kind: str, shapes: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{kind}.forward must return .* got a tuple of .*{shapes}"
    ):
        run(tmp_path, *moe(kind), "max_steps=1")


def test_a_model_without_one_is_as_it_was(tmp_path) -> None:
    result = run(tmp_path, "max_steps=2")
    assert "train/aux_loss" not in result["metrics"]
    model, data = model_and_data()
    batch = data.batch("train", 0)
    handles = model.prepare(*batch.shape_BM)
    assert model.hidden_and_aux(batch.tokens_BM, batch.positions_1M, handles)[1] is None
    sums = LossSums(torch.ones(()), torch.ones(()), None)
    assert sums.minimized is sums.loss and sums.with_aux(None) is sums


def test_its_memory_is_predicted_and_it_is_sampled() -> None:
    model, data = model_and_data(*STEPS)
    prompt_BM = torch.zeros(1, 3, dtype=torch.int64)
    assert generate(model, prompt_BM, 2, vocab_size=64).shape == (1, 5)

    settings = validate(small(*STEPS))
    place = (torch.float32, torch.device("cpu"))
    peak = predict(settings, model, Full(), data.batch("train", 0), *place)
    assert peak.layers[0].ffn > 3 * 8 * 16 * 32 * 4  # each expert's own activations

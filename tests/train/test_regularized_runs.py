"""Runs with z-loss, label smoothing and capped logits: what is minimized, and what is recorded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.train.runs import last, model_and_data, rows_of, run, weights_of
from tests.train.uneven import write_uneven
from xftrain.interfaces import IGNORED_LABEL, Batch
from xftrain.model.gpt import GPT
from xftrain.optim.adamw import AdamW
from xftrain.schedule.cosine import Cosine

Z, SMOOTHING = 0.1, 0.2
WORDS = (
    f"loss.z_loss={Z}",
    f"loss.label_smoothing={SMOOTHING}",
    "model.logit_softcap=0.5",
    "max_steps=2",
    "trainer.log_every_n_steps=1",
)


def sums_of(model: GPT, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """Summed cross-entropy, the summed terms that are added, and the number of labels."""
    logits = model(batch.tokens_BM, batch.seqlens).flatten(0, 1)
    labels = batch.labels_BM.flatten()
    plain, smooth = (
        F.cross_entropy(
            *(logits, labels), ignore_index=IGNORED_LABEL, reduction="sum", label_smoothing=share
        )
        for share in (0.0, SMOOTHING)
    )
    log_z = logits[labels != IGNORED_LABEL].logsumexp(dim=-1)
    return plain, smooth - plain + Z * (log_z**2).sum(), len(log_z)


@pytest.mark.parametrize(
    ("data", "loss", "num_batches"),
    [("uneven", "fused", 2), ("counting_packed", "chunked", 1)],
)
def test_terms_are_minimized_and_recorded_apart(tmp_path, data, loss, num_batches) -> None:
    where = {"config_dir": write_uneven(tmp_path / "own")}
    words = (f"data={data}", f"loss={loss}", *WORDS)
    words = (*words, f"trainer.accumulate_grad_batches={num_batches}")
    result = run(tmp_path / "run", *words, **where)
    model, source = model_and_data(*words, **where)
    optimizer, schedule = AdamW().build(model, Cosine(), max_steps=2)
    names = ("train/loss", "train/regularization", "train/grad_norm")
    seen: dict[str, dict[int, float]] = {name: {} for name in names}
    for step in (1, 2):
        indices = range((step - 1) * num_batches, step * num_batches)
        parts = [sums_of(model, source.batch("train", index)) for index in indices]
        num_labels = sum(count for *_, count in parts)
        plain, added = (
            torch.stack([part[index] for part in parts]).sum() / num_labels for index in (0, 1)
        )
        optimizer.zero_grad()
        (plain + added).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for name, value in zip(names, (plain, added, norm), strict=True):
            seen[name][step] = value.item()
        optimizer.step()
        schedule.step()
    for name in names:
        assert rows_of(tmp_path / "run", name) == pytest.approx(seen[name], rel=1e-4), name
    for name, weight in weights_of(last(tmp_path / "run")).items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-3, atol=5e-6)
    # validation is of the cross-entropy alone, with the weights of the last step
    batches = [source.batch("val", index) for index in range(source.num_val_batches)]
    with torch.no_grad():
        parts = [sums_of(model, batch) for batch in batches]
    mean = sum(float(loss) for loss, *_ in parts) / sum(count for *_, count in parts)
    metrics = result["metrics"]
    assert metrics["val/loss"] == pytest.approx(mean, rel=1e-5)
    assert metrics["train/perplexity"] == pytest.approx(2.718281828 ** metrics["train/loss"])
    assert "val/regularization" not in metrics

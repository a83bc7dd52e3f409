"""What a run that is out of memory says: its sizes, its peak, and what would save the most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from xftrain.builder import assemble
from xftrain.errors import RunError
from xftrain.interfaces import Batch, Loss
from xftrain.losses.chunked import Chunked
from xftrain.losses.full import Full
from xftrain.memory import peak_memory_mib, total_memory_bytes, usable_memory_bytes
from xftrain.peak.prediction import chosen_loss, predict


@dataclass(frozen=True)
class Case:
    """A run as far as its memory goes.

    Attributes:
        options: the checked configuration.
        vocab_size: V.
        loss: cross-entropy.
        batch: the first.
        dtype: of matrix products and attention.
        device: where it runs.
    """

    options: Mapping[str, Any]
    vocab_size: int
    loss: Loss
    batch: Batch
    dtype: torch.dtype
    device: torch.device


def out_of_memory(error: BaseException, case: Case) -> RunError:
    """The allocator's error as one sentence, with the three settings that would save the most."""
    rows, tokens = case.batch.shape_BM
    device = case.device
    peak = peak_memory_mib(device) / 1024
    total = f" of {total_memory_bytes(device) / 2**30:.1f} GiB" if device.type == "cuda" else ""
    return RunError(
        f"out of memory on {device.type} at {rows} x {tokens} tokens with a peak of {peak:.1f} "
        f"GiB{total} ({str(error).strip().splitlines()[0] if str(error) else type(error).__name__})"
        f"; what would save the most: {_remedies(case)}."
    )


def _remedies(case: Case) -> str:
    """Settings, and by how much less is predicted with each."""
    loss = chosen_loss(case.loss, case.batch.num_tokens, case.vocab_size, case.device)
    case = replace(case, loss=loss)
    remedies = list(_changed(case))
    try:
        now = _peak_bytes(case)
        savings = [(now - _peak_bytes(changed), text) for text, changed in remedies]
    except Exception:  # whatever a layer of the user's own may raise
        return ", ".join(text for text, _ in remedies[:3])
    best = [(saved, text) for saved, text in sorted(savings, reverse=True)[:3] if saved > 0]
    said = [f"{text} (about {saved / 2**30:.1f} GiB)" for saved, text in best]
    return ", ".join(said or [text for text, _ in remedies[:3]])


def _changed(case: Case) -> Iterator[tuple[str, Case]]:
    """Each setting that may help, and the run that it makes."""

    def with_model(**keys: Any) -> Case:
        return replace(case, options={**case.options, "model": {**case.options["model"], **keys}})

    model, batch = case.options["model"], case.batch
    if model["attn"].get("name") == "naive":
        yield "model.attn=auto", with_model(attn={"name": "auto"})
    if (recomputes := model["activation_checkpointing"]) is not True:
        fewer = "" if recomputes else ", or auto for as few blocks as will do"
        text = f"model.activation_checkpointing=true{fewer}"
        yield text, with_model(activation_checkpointing=True)
    if isinstance(case.loss, Full):
        yield "loss=chunked", replace(case, loss=Chunked())
    rows, tokens = batch.shape_BM
    if rows > 1:
        half = f"data.batch_size={rows // 2} with trainer.accumulate_grad_batches doubled"
    elif case.options["seq"] < tokens:  # a row of packed documents
        half = f"batch_tokens={tokens // 2}"
    else:
        half = f"seq={tokens // 2} batch_tokens={tokens // 2}"
    yield half, replace(case, batch=_half(batch))
    if case.dtype == torch.float32:
        trainer = {**case.options["trainer"], "precision": "bf16-mixed"}
        options = {**case.options, "trainer": trainer}
        yield "trainer.precision=bf16-mixed", replace(case, options=options, dtype=torch.bfloat16)
    if (num_layers := model["num_layers"]) > 1:
        yield f"model.num_layers={num_layers // 2}", with_model(num_layers=num_layers // 2)


def _half(batch: Batch) -> Batch:
    """Half of the rows, or of the one row, whose documents do not matter here."""
    rows, tokens = batch.shape_BM
    rows, tokens = (rows // 2, tokens) if rows > 1 else (1, tokens // 2)
    return Batch(
        batch.tokens_BM[:rows, :tokens],
        batch.labels_BM[:rows, :tokens],
        batch.positions_1M[:, :tokens],
    )


def _peak_bytes(case: Case) -> int:
    with torch.device("meta"):
        model = assemble(case.options, case.vocab_size)
    peak = predict(case.options, model, case.loss, case.batch, case.dtype, case.device)
    if case.options["model"]["activation_checkpointing"] == "auto":
        return peak.total(peak.least(usable_memory_bytes(case.device)))
    return peak.total(model.num_recomputed)

"""The error of a run that is out of memory: its sizes, its peak, and what would save the most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from xftrain.commands.builder import assemble
from xftrain.commands.prepare import Prepared
from xftrain.config import registry
from xftrain.config.option_checks import checked_option
from xftrain.errors import RunError
from xftrain.interfaces import Batch
from xftrain.memory.prediction import predict
from xftrain.utils.device_memory import (
    is_out_of_memory,
    peak_memory_mib,
    total_memory_bytes,
    usable_memory_bytes,
)

_BUDGET = 0.5  # the suggested model.activation_budget


@contextmanager
def out_of_memory_explained(run: Prepared) -> Iterator[None]:
    """Replaces an out-of-memory error by one that names remedies."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, run) from error


def out_of_memory(error: BaseException, run: Prepared) -> RunError:
    """The allocator's error as one sentence, with the three settings that would save the most."""
    rows, tokens = run.batch.shape_BM
    device = run.device
    peak = peak_memory_mib(device) / 1024
    total = f" of {total_memory_bytes(device) / 2**30:.1f} GiB" if device.type == "cuda" else ""
    return RunError(
        f"out of memory on {device.type} at {rows} x {tokens} tokens with a peak of {peak:.1f} "
        f"GiB{total} ({str(error).strip().splitlines()[0] if str(error) else type(error).__name__})"
        f"; what would save the most: {_remedies(run)}."
    )


def _remedies(run: Prepared) -> str:
    """The settings that save the most, with the predicted saving of each."""
    if (choice := getattr(run.loss, "choice", None)) is not None:
        run = replace(run, loss=choice(run.batch.num_tokens, run.vocab_size, run.device))
    remedies = list(_changed(run))
    try:
        now = _peak_bytes(run)
        savings = [(now - _peak_bytes(changed), text) for text, changed in remedies]
    except Exception:  # a user's own layer may raise anything
        return ", ".join(text for text, _ in remedies[:3])
    best = [(saved, text) for saved, text in sorted(savings, reverse=True)[:3] if saved > 0]
    said = [f"{text} (about {saved / 2**30:.1f} GiB)" for saved, text in best]
    return ", ".join(said or [text for text, _ in remedies[:3]])


def _changed(run: Prepared) -> Iterator[tuple[str, Prepared]]:
    """Yields each setting that may help, and the run with that setting."""

    def with_model(**keys: Any) -> Prepared:
        return replace(run, cfg=replace(run.cfg, model=replace(run.cfg.model, **keys)))

    model, batch = run.cfg.model, run.batch
    attn = registry.build(model.attn)
    if (smaller := getattr(attn, "smaller_option", None)) is not None:
        yield (
            f"model.attn={smaller}",
            with_model(attn=checked_option("model.attn", {"name": smaller})),
        )
    is_graph = run.cfg.compile == "cudagraphs"  # excludes some of the settings
    recomputes = model.activation_checkpointing
    if is_graph and not recomputes:
        yield "model.activation_checkpointing=ffn", with_model(activation_checkpointing="ffn")
    if is_graph and model.activation_budget > _BUDGET:
        yield f"model.activation_budget={_BUDGET}", with_model(activation_budget=_BUDGET)
    if not is_graph and recomputes is not True:
        fewer = "" if recomputes == "auto" else ", or auto to recompute only what is needed"
        text = f"model.activation_checkpointing=true{fewer}"
        yield text, with_model(activation_checkpointing=True)
    if (smaller := getattr(run.loss, "smaller_option", None)) is not None:
        loss = registry.build(checked_option("loss", {"name": smaller}))
        yield f"loss={smaller}", replace(run, loss=loss)
    rows, tokens = batch.shape_BM
    if rows > 1:
        doubled = "" if is_graph else " with trainer.accumulate_grad_batches doubled"
        half = f"data.batch_size={rows // 2}{doubled}"
    elif run.cfg.seq < tokens:  # one row of packed documents
        half = f"batch_tokens={tokens // 2}"
    else:
        half = f"seq={tokens // 2} batch_tokens={tokens // 2}"
    yield half, replace(run, batch=_half(batch))
    if run.dtype == torch.float32:
        cfg = replace(run.cfg, trainer=replace(run.cfg.trainer, precision="bf16-mixed"))
        yield "trainer.precision=bf16-mixed", replace(run, cfg=cfg, dtype=torch.bfloat16)
    if (num_layers := model.num_layers) > 1:
        yield f"model.num_layers={num_layers // 2}", with_model(num_layers=num_layers // 2)


def _half(batch: Batch) -> Batch:
    """The first half of the rows or of a single row, whose document lengths do not matter here."""
    rows, tokens = batch.shape_BM
    rows, tokens = (rows // 2, tokens) if rows > 1 else (1, tokens // 2)
    return Batch(
        batch.tokens_BM[:rows, :tokens],
        batch.labels_BM[:rows, :tokens],
        batch.positions_1M[:, :tokens],
    )


def _peak_bytes(run: Prepared) -> int:
    with torch.device("meta"):
        model = assemble(run.cfg.model, run.vocab_size)
    peak = predict(run.cfg, model, run.loss, run.batch, run.dtype, run.device)
    if run.cfg.model.activation_checkpointing == "auto":
        return peak.total(peak.cheapest_fitting_plan(usable_memory_bytes(run.device)))
    return peak.total(model.recompute_plan)

"""Saves the choices of `auto` options in checkpoints; a resumed run makes the same choices.

Timings differ from process to process, and so would a new choice: the resumed run would use other
kernels, and its result would not be bitwise equal to that of an uninterrupted run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from xftrain.checkpoint.header import header
from xftrain.folders.run_folder import RunFolder, holds_run, note_of
from xftrain.interfaces import AttnCase, Batch, ChoosingBackend, Loss
from xftrain.kernels.matmul import Autotuner
from xftrain.model.backends import kernel_name
from xftrain.model.gpt import GPT
from xftrain.train import distributed, hardware
from xftrain.utils.printable import one_line
from xftrain.utils.processes import rank

_MAX_NAME = 1000  # characters of the name of a device or kernel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedChoices:
    """The choices in the checkpoint of the resumed run; empty if no run is resumed.

    Attributes:
        attn: the backend that `model.attn=auto` chose.
        attn_at: the sizes for which `attn` was chosen, if the choice is valid only for these.
        matmul: the algorithm that `matmul=auto` chose on this rank for each matmul.
        ran_as: other properties that change results in the last digits, by name.
    """

    attn: str | None = None
    attn_at: str | None = None
    matmul: Mapping[str, str | None] = field(default_factory=dict)
    ran_as: Mapping[str, str] = field(default_factory=dict)


def saved_choices(ckpt: Path | None, configured: str | None, folder: RunFolder) -> SavedChoices:
    """The choices of the resumed run, which rank 0 reads for all ranks.

    Args:
        ckpt: the checkpoint; None resumes nothing.
        configured: the value of `ckpt`; `auto` also restarts a run that was killed in this
            folder before its first save.
        folder: the folder of the run.
    """
    saved: Any = None
    if ckpt is not None and rank() == 0:
        saved = (header(ckpt) or {}).get("callbacks", {}).get("Choices")
    elif configured == "auto" and rank() == 0 and not holds_run(folder.path):
        saved = {name: note_of(folder.path, name) for name in ("attn", "attn_at")}
    saved = distributed.broadcast_from_rank_0(saved)
    if not isinstance(saved, Mapping):
        return SavedChoices()
    attn, matmul_by_rank, ran_as = (saved.get(key) for key in ("attn", "matmul", "ran_as"))
    same_ranks = isinstance(matmul_by_rank, list) and (
        len(matmul_by_rank) == distributed.world_size()
    )
    own = matmul_by_rank[rank()] if isinstance(matmul_by_rank, list) and same_ranks else {}
    return SavedChoices(
        attn if _is_name(attn) else None,
        at if _is_name(at := saved.get("attn_at")) else None,
        {k: v for k, v in _string_keyed(own).items() if v is None or isinstance(v, str)},
        {k: v for k, v in _string_keyed(ran_as).items() if _is_name(v)},
    )


def _string_keyed(saved: Any) -> dict[str, Any]:
    """The entries with a string as key; empty if the checkpoint holds no mapping."""
    saved = saved if isinstance(saved, Mapping) else {}
    return {key: value for key, value in saved.items() if isinstance(key, str)}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_NAME


def choose_kernel(
    model: GPT,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    saved: SavedChoices,
    folder: RunFolder,
) -> str:
    """The name of the attention kernel that will run; `auto` chooses here.

    Args:
        model: the model.
        batch: the first batch.
        device: device of q, k and v.
        dtype: dtype of q, k and v.
        saved: choices of the resumed run, which are repeated if they can run here.
        folder: folder of the run, in which the choice is recorded.
    """
    cases = model.attention_cases(*batch.shape_BM, batch.seqlens, (device, dtype))
    if isinstance(model.backend, ChoosingBackend):
        at = "; ".join(
            f"{shape} {dtype} {device.type} causal={bias.causal} window={bias.window}"
            + (f" softcap={bias.softcap}" if bias.softcap is not None else "")
            for (bias, shape, *_), _ in cases
        )
        name = saved.attn if saved.attn_at in (None, at) else None
        if rank() == 0 and not _repeats_choice(model.backend, name, cases):
            model.backend.choose(cases)
        if (made := model.backend.chosen) is not None:
            folder.notes = {"attn": made.name, "attn_at": at}
        if distributed.world_size() > 1:  # timings differ by rank, and so would the choice
            chosen = model.backend.chosen
            model.backend.choose_by_name(distributed.broadcast_from_rank_0(chosen and chosen.name))
    kernel = kernel_name(model.backend, cases)
    log.info("attention kernel: %s", kernel)
    return kernel


def _repeats_choice(backend: ChoosingBackend, name: str | None, cases: Sequence[AttnCase]) -> bool:
    if name is None:
        return False
    reasons = backend.reuse_choice(name, cases)
    if not reasons:
        log.info("attention: auto chooses %s, as the resumed run did", name)
        return True
    log.info(
        "attention: auto chooses again, as %s of the resumed run cannot run here (%s)",
        *(one_line(name), "; ".join(reasons)),
    )
    return False


def loss_name(loss: Loss, batch: Batch, vocab_size: int, device: torch.device) -> str:
    """The class name of the loss that runs; `loss=auto` chooses it by device and memory."""
    if (choice := getattr(loss, "choice", None)) is not None:
        loss = choice(batch.labels_BM.numel(), vocab_size, device)
    return type(loss).__name__


def machine_properties(device: torch.device) -> dict[str, str]:
    """The properties of the machine that change results in the last digits."""
    properties = {"device": hardware.device_name(device), "torch": str(torch.__version__)}
    if device.type == "cpu":
        properties["number of threads"] = str(torch.get_num_threads())
    return properties


class Choices(Callback):
    """Saves the choices of `auto` options in checkpoints.

    Args:
        attn: the attention backend of the model.
        ran_as: other properties that change results in the last digits, by name.
        saved: choices of the resumed run; differences are logged.
        tuner: the run's autotuned matmuls; None where torch chooses.
    """

    modifies_weights = False

    def __init__(
        self,
        attn: object,
        ran_as: Mapping[str, str],
        saved: SavedChoices,
        tuner: Autotuner | None = None,
    ) -> None:
        self.attn, self.ran_as, self.tuner = attn, dict(ran_as), tuner
        there = {key: saved.ran_as.get(key, value) for key, value in ran_as.items()}
        if differing := [key for key, value in ran_as.items() if there[key] != value]:
            log.info(
                "ckpt: the last digits may differ from those of its run, with another %s",
                one_line(", ".join(f"{k} ({there[k]} -> {ran_as[k]})" for k in differing)),
            )

    def state_dict(self) -> dict[str, Any]:
        """The choices of all ranks, as each rank times its own matmuls; rank 0 saves."""
        chosen = self.attn.chosen if isinstance(self.attn, ChoosingBackend) else None
        return {
            "attn": None if chosen is None else chosen.name,
            "matmul": distributed.all_gather_values(
                self.tuner.algorithm_names() if self.tuner else {}
            ),
            "ran_as": self.ran_as,
        }

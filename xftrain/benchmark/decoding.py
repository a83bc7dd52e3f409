"""Measures decoding: the time of a step that reads one token of each row, and the cache it reads.

The prompts are not read: the cache is filled with random keys and values, so that neither the time
nor the memory of a prefill is measured. The steps are those of `xftrain.generation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from xftrain.benchmark.cells import Cell, Node, kv_cache_bytes
from xftrain.benchmark.measure import settle, spread, warm_up
from xftrain.benchmark.worker import Reporter
from xftrain.commands import builder
from xftrain.config.compose import checked_model
from xftrain.config.own_code import own_code
from xftrain.generation.cache import Cache
from xftrain.generation.decoding import Decoding
from xftrain.generation.sampling import Sampling
from xftrain.generation.step import DecodeStep
from xftrain.model.gpt import GPT
from xftrain.utils.timing import wall_ms

_WARM_UP = 4  # untimed steps of a round, that of a graph's capture included


@dataclass(frozen=True)
class DecodeCell(Cell):
    """Decoding with one model, at one length of the context.

    Attributes:
        model: plain values of `model`.
        vocab_size: V.
        num_rows: B.
        num_positions: M, the number of positions of a row after the last step.
        num_tokens: number of timed steps of a round.
        rounds: number of rounds over all cells.
        dtype: dtype of weights and cache, such as `bfloat16`.
        device: `cuda` or `cpu`.
    """

    model: Node
    vocab_size: int
    num_rows: int
    num_positions: int
    num_tokens: int
    rounds: int
    dtype: str
    device: str

    @property
    def identity(self) -> Any:
        """Everything that determines the results of the cell, except the machine."""
        sizes = (self.vocab_size, self.num_rows, self.num_positions, self.num_tokens, self.rounds)
        code = own_code(self.model)
        return (self.model, sizes, self.dtype, self.device, *([code] if code else []))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a torch.dtype."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def build_model(self, device: torch.device) -> GPT:
        """Builds the model with random weights, in evaluation mode.

        Raises:
            ConfigError: the parts of the model do not fit together.
        """
        with device:
            model = builder.assemble(checked_model(self.model), self.vocab_size)
        return model.to(self.torch_dtype).eval()


def formula_bytes(cell: DecodeCell) -> int:
    """The size of the cache by its formula: keys and values of the positions that a layer sees.

    Raises:
        ConfigError: the parts of the model do not fit together.
    """
    model = cell.build_model(torch.device("meta"))
    total = 0
    for window, block in zip(model.windows, model.blocks, strict=True):
        num_kv_heads: int = block.heads.num_kv_heads  # type: ignore[union-attr, assignment]
        token_bytes = kv_cache_bytes(1, num_kv_heads, model.head_dim, cell.torch_dtype)
        total += token_bytes * min(cell.num_positions, window or cell.num_positions)
    return cell.num_rows * total


def measure_decoding(cells: Sequence[DecodeCell], reporter: Reporter) -> None:
    """Measures cells in turns and reports rows with `tokens_per_s`, `ms_per_token` and the cache.

    Each cell has the device to itself: its model and cache are freed before the next one's turn.
    """
    warm_up(torch.device(cells[0].device))
    found: dict[int, list[dict[str, Any]]] = {index: [] for index in range(len(cells))}
    for _ in range(max(cell.rounds for cell in cells)):
        for index in list(found):
            if len(found[index]) == cells[index].rounds:
                continue
            record = reporter.attempt(index, measure_round, cells[index])
            if record is None:
                del found[index]
            else:
                found[index].append(record)
    for index, records in found.items():
        reporter.row(index, "ok", **_joined(cells[index], records))


@torch.no_grad()
def measure_round(cell: DecodeCell) -> dict[str, Any]:
    """Times the last steps up to `num_positions`, without waiting for the device between them.

    Raises:
        ConfigError: the model has fewer positions, or cannot generate token by token.
    """
    device = torch.device(cell.device)
    settle(device)
    torch.manual_seed(0)
    model = cell.build_model(device)
    model.check_length(cell.num_positions)
    cache = Cache(model, cell.num_rows, cell.num_positions)
    for layer in cache.layers:
        layer.k_BCGK.normal_()
        layer.v_BCGK.normal_()
    num_untimed = min(_WARM_UP, cell.num_positions - cell.num_tokens)
    num_steps = num_untimed + cell.num_tokens
    decoding = Decoding(
        DecodeStep(model, cache),
        torch.zeros(cell.num_rows, cell.vocab_size, device=device),
        torch.full((cell.num_rows,), cell.num_positions - num_steps, device=device),
        1 + num_steps,  # the first token is drawn before the first step
        vocab_size=cell.vocab_size,
        sampling=Sampling(temperature=0),
        seed=0,
    )
    decoding.capture(cell.num_tokens)
    decoding.advance(1 + num_untimed - decoding.num_drawn)
    ms = wall_ms(partial(decoding.advance, cell.num_tokens), device)
    if not decoding.read()[1]:
        raise RuntimeError(f"the logits are not finite in {cell.dtype}")
    return {
        "ms_per_token": ms / cell.num_tokens,
        "uses_graph": decoding.uses_graph,
        "cache_bytes": cache.num_bytes,
        "cache_slots": max(layer.num_slots for layer in cache.layers),
    }


def _joined(cell: DecodeCell, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins the rounds of a cell into one row."""
    times_ms = [record["ms_per_token"] for record in records]
    speeds = [cell.num_rows * 1e3 / ms for ms in times_ms]
    first = records[0]
    return {
        **spread("tokens_per_s", speeds),
        **spread("ms_per_token", times_ms),
        "repetitions": len(records),
        "cache_bytes": first["cache_bytes"],
        "cache_mib": first["cache_bytes"] / 2**20,
        "cache_slots": first["cache_slots"],
        "uses_graph": all(record["uses_graph"] for record in records),
    }

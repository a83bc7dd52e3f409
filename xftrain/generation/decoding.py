"""Decodes token after token, in a CUDA graph where there is one."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from xftrain.errors import first_line
from xftrain.generation.sampling import Sampling
from xftrain.generation.step import DecodeStep
from xftrain.kernels.append_greedy import append_, append_greedy_
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)

_MIN_TOKENS = 24  # below, capturing a CUDA graph takes longer than it saves


def _may_capture(device: torch.device) -> bool:
    """Whether CUDA graphs can be captured on the device.

    Under autocast none is captured, since the cast weights live only as long as its context.
    """
    return device.type == "cuda" and not torch.is_autocast_enabled(device.type)


class Decoding:
    """The tokens of all rows, which grow by one in each step, and stay on the device.

    Args:
        step: reads a token of each row.
        logits_BV: the logits that follow the prompts.
        positions_B: the positions of the tokens that follow the prompts.
        num_tokens: number of tokens to draw for each row.
        vocab_size: tokens from this id on are padding of the vocabulary and are never drawn.
        sampling: how a token is drawn.
        seed: seed of the draws.

    Attributes:
        num_drawn: number of tokens of each row that have been drawn.
        uses_graph: whether a CUDA graph computes the steps.
    """

    def __init__(
        self,
        step: DecodeStep,
        logits_BV: Tensor,
        positions_B: Tensor,
        num_tokens: int,
        *,
        vocab_size: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        device = logits_BV.device
        self._step, self._sampling, self._vocab_size = step, sampling, vocab_size
        self._generator = torch.Generator(device).manual_seed(seed)
        self._drawn_BN = torch.zeros(len(positions_B), num_tokens, dtype=torch.int64, device=device)
        self._positions_B = positions_B - 1
        self._columns_B = torch.zeros_like(positions_B)
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._tokens_B = torch.zeros_like(positions_B)
        self._draw(logits_BV)
        self.num_drawn = 1

    @property
    def uses_graph(self) -> bool:
        """Whether a CUDA graph computes the steps."""
        return self._graph is not None

    def advance(self, num_tokens: int) -> None:
        """Draws as many tokens of each row, without waiting for the device."""
        for _ in range(num_tokens):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._advance()
        self.num_drawn += num_tokens

    def read(self) -> tuple[Tensor, bool]:
        """The tokens that have been drawn, [B, N], on the host, and whether all logits were finite.

        It waits for the device.
        """
        return self._drawn_BN[:, : self.num_drawn].cpu(), bool(self._is_finite)

    def capture(self, num_left: int) -> None:
        """Captures a step in a CUDA graph, if there is a GPU and enough is left to draw.

        If that fails, the steps are launched one by one, as without a GPU.
        """
        device = self._positions_B.device
        if num_left < _MIN_TOKENS or not _may_capture(device):
            return
        stream = torch.cuda.Stream(device)
        outer = torch.cuda.current_stream(device)
        stream.wait_stream(outer)
        with torch.cuda.stream(stream):
            self.advance(1)  # outside a graph, as libraries allocate at the first call
        outer.wait_stream(stream)
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):  # a model may be on another device than the current one
            self._capture_on(stream, outer)

    def _capture_on(self, stream: torch.cuda.Stream, outer: torch.cuda.Stream) -> None:
        graph = torch.cuda.CUDAGraph()
        state = self._generator.get_state()
        failure: RuntimeError | None = None
        try:
            if not self._sampling.is_greedy:
                graph.register_generator_state(self._generator)
            # by default, the stream would be one of the device of the process's first capture
            with torch.cuda.graph(graph, stream=stream):
                try:
                    self._advance()
                except RuntimeError as error:  # the end of the capture raises another one
                    failure = error
        except RuntimeError as error:
            failure = failure or error
        finally:
            torch.cuda.set_stream(outer)  # a capture that fails leaves its own stream current
        if failure is None:
            self._graph = graph
            return
        # a generator stays in capture mode after a failed capture, and cannot be drawn from
        self._generator = torch.Generator(self._positions_B.device)
        self._generator.set_state(state)
        log.info(
            "generation: no CUDA graph can be captured of this model (%s), so each kernel is "
            "launched from the host",
            one_line(first_line(failure)),
        )

    def _advance(self) -> None:
        """Reads the last tokens, and draws the next ones."""
        self._draw(self._step(self._tokens_B, self._positions_B))

    def _draw(self, logits_BV: Tensor) -> None:
        """Appends a token to each row, and moves all rows on by a position."""
        state = (self._drawn_BN, self._columns_B, self._tokens_B, self._positions_B)
        if self._sampling.is_greedy:
            append_greedy_(logits_BV, self._vocab_size, *state, self._is_finite)
            return
        logits_BV = logits_BV[:, : self._vocab_size]
        self._is_finite.logical_and_(logits_BV.amax(-1).isfinite().all())  # NaN if any logit is
        append_(self._sampling.draw(logits_BV.float(), self._generator), *state)

"""A step is captured on the model's device, and a capture that fails changes no draw."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.models import gpt, random_tokens
from xftrain.generation import decoding
from xftrain.generation.generate import generate_texts
from xftrain.generation.sampling import Sampling
from xftrain.generation.step import DecodeStep

CPU = torch.device("cpu")


class Cuda:
    """`torch.cuda` as far as a capture uses it, on the CPU; a capture fails as CUDA's does.

    Attributes:
        devices: the devices that were named.
        current: the current stream.
        capturing: whether a capture is running.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.devices: list[Any] = []
        self.outer, self.capturing = SimpleNamespace(wait_stream=lambda _: None), False
        self.current: Any = self.outer
        self.registered: list[torch.Generator] = []
        draw, step = Sampling.draw, DecodeStep.__call__

        def drawn(sampling: Sampling, logits: Any, generator: torch.Generator) -> Any:
            if any(generator is one for one in self.registered):
                raise RuntimeError("Offset increment outside graph capture encountered")
            return draw(sampling, logits, generator)

        def stepped(own: DecodeStep, *inputs: Any) -> Any:
            if self.capturing:
                raise RuntimeError("operation not permitted when stream is capturing")
            return step(own, *inputs)

        patch.setattr(Sampling, "draw", drawn)
        patch.setattr(DecodeStep, "__call__", stepped)
        patch.setattr(decoding, "_may_capture", lambda device: True)
        patch.setattr(torch.cuda, "Stream", self._new_stream)
        patch.setattr(torch.cuda, "current_stream", self._current_stream)
        patch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        patch.setattr(torch.cuda, "synchronize", lambda device=None: self.devices.append(device))
        patch.setattr(torch.cuda, "device", self._device)
        patch.setattr(torch.cuda, "graph", self._graph)
        patch.setattr(
            torch.cuda,
            "CUDAGraph",
            lambda: SimpleNamespace(register_generator_state=self._register),
        )

    def _new_stream(self, device: Any = None) -> Any:
        self.devices.append(device)
        return SimpleNamespace(wait_stream=lambda _: None)

    def _current_stream(self, device: Any = None) -> Any:
        self.devices.append(device)
        return self.current

    def _device(self, device: Any) -> Any:
        self.devices.append(device)
        return nullcontext()

    def _register(self, generator: torch.Generator) -> None:
        self.registered.append(generator)
        generator.manual_seed(999)  # a capture leaves another state behind

    @contextmanager
    def _graph(self, graph: Any, stream: Any = None) -> Any:
        assert stream is not None  # the default is of the device of the first capture
        self.current, self.capturing = stream, True
        try:
            yield
        finally:
            self.capturing = False
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_after_a_failed_capture_the_draws_are_those_without_a_graph(
    temperature: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, prompts = gpt(scale=2.0), random_tokens(2, 5).tolist()
    how: dict[str, Any] = {"vocab_size": 64, "sampling": Sampling(temperature, top_p=0.9)}
    want = generate_texts(model, prompts, 40, **how)
    cuda = Cuda(monkeypatch)
    made = generate_texts(model, prompts, 40, **how)
    texts = [one.tokens for one in want.continuations]
    assert [one.tokens for one in made.continuations] == texts and len(set(map(tuple, texts))) == 2
    assert not made.uses_graph and cuda.current is cuda.outer
    assert len(cuda.registered) == (temperature > 0)
    # the cause, rather than the error at the end of the capture
    assert "operation not permitted when stream is capturing)" in caplog.text


def test_a_step_is_captured_on_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    generate_texts(gpt(), [[1, 2]], 30, vocab_size=64)
    assert len(cuda.devices) == 4 and set(cuda.devices) == {CPU}


@pytest.mark.cuda
def test_a_step_that_waits_for_the_device_is_drawn_without_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = gpt(scale=2.0).cuda(), random_tokens(2, 5).tolist()
    how: dict[str, Any] = {"vocab_size": 64, "sampling": Sampling(top_p=0.9)}
    want = generate_texts(model, prompts, 40, **how)
    step = DecodeStep.__call__

    def waiting(self: DecodeStep, tokens_B: Any, positions_B: Any) -> Any:
        assert int(positions_B[0]) >= 0  # no capture may read a value
        return step(self, tokens_B, positions_B)

    monkeypatch.setattr(DecodeStep, "__call__", waiting)
    outer = torch.cuda.current_stream()
    made = generate_texts(model, prompts, 40, **how)
    assert want.uses_graph and not made.uses_graph and torch.cuda.current_stream() == outer
    assert [one.tokens for one in made.continuations] == [one.tokens for one in want.continuations]


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_another_gpu_than_the_current_one_generates_alike() -> None:
    texts = []
    for device in ("cuda:0", "cuda:1"):
        made = generate_texts(gpt(scale=2.0).to(device), [[1, 2]], 40, vocab_size=64)
        assert made.uses_graph and torch.cuda.current_device() == 0
        texts.append(made.continuations[0].tokens)
    assert texts[0] == texts[1]

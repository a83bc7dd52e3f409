"""The memory prediction asks options what they need, and knows none of them by name."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor, nn

from tests.models import VOCAB, changed, options, random_tokens
from xftrain.callbacks.metrics import Metrics
from xftrain.callbacks.progress import _Bar
from xftrain.commands.builder import assemble
from xftrain.interfaces import AttnCall, Backend, Batch, positions_of
from xftrain.loss.full import Full
from xftrain.memory import prediction
from xftrain.memory.plan import plan_memory
from xftrain.model.attn.naive import Naive
from xftrain.model.gpt import GPT
from xftrain.train.bf16_weights import weight_modifiers

CPU = torch.device("cpu")


class Renamed(Naive):
    """The same under another name: nothing may go by the name, or by the very class."""

    name = "renamed"


class Plain(Backend):
    """A backend of the user's own in plain PyTorch, which has no method for memory."""

    name = "plain"

    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        return []

    def handle_for(self, call: AttnCall) -> float:
        return call.scale

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        scores = torch.einsum("bmhk,bnhk->bhmn", q.float(), k.float()) * scale
        return torch.einsum("bhmn,bnhk->bmhk", scores.softmax(-1), v.float()).to(q.dtype)

    def kernel_for(self, call: AttnCall) -> str:
        return "plain"


class Opaque(Plain):
    """One that looks at numbers, which fake tensors do not have."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return super().__call__(q * float(q.sum().item() > 0), k, v, scale)


def predicted(backend: Any, loss: Any = None, seqlens: tuple[int, ...] | None = None) -> Any:
    settings = options(attn="naive", num_layers=4)
    model: GPT = assemble(settings.model, VOCAB)
    model.backend = model.attention = backend
    rows = 1 if seqlens else 4
    tokens_BM = random_tokens(rows, 256)
    batch = Batch(tokens_BM, tokens_BM, positions_of(256, seqlens), seqlens)
    return plan_memory(settings, model, loss or Full(), batch, torch.float32, CPU)


def test_a_backend_under_another_name_is_predicted_the_same():
    # it was taken for a fused kernel: 80 MiB in place of 234
    assert predicted(Renamed()) == predicted(Naive())


def test_a_backend_that_says_nothing_is_run_on_fake_tensors():
    assert predicted(Plain()) == pytest.approx(predicted(Naive()), rel=0.1)


def test_a_backend_that_fake_tensors_cannot_run_is_unknown(caplog):
    with caplog.at_level(logging.DEBUG, "xftrain.memory.plan"):
        assert predicted(Opaque()) is None
    assert "not predicted" in caplog.text


def test_scores_of_packed_documents_are_those_of_each_document():
    whole, halves = predicted(Naive(), seqlens=(256,)), predicted(Naive(), seqlens=(128, 128))
    heads, layers, itemsize = options().model.num_heads, 4, 4
    saved = layers * heads * 256 * 256 // 2 * itemsize
    assert whole - halves >= saved / 2**20


def test_a_loss_that_says_nothing_holds_the_whole_logits_and_is_named(caplog):
    class Own:
        chunk_tokens = 1  # says nothing of what it holds

        def __call__(self, *_: Any, **__: Any) -> None: ...

    with caplog.at_level(logging.INFO, "xftrain.memory.plan"):
        assert predicted(Naive(), Own()) == predicted(Naive(), Full())
    assert caplog.text.count("loss has no peak_bytes") == 1


def test_who_may_modify_weights_is_said_by_the_very_class():
    class Quiet(Callback):
        modifies_weights = False

    class Changed(Metrics):  # it may override anything
        pass

    class Bar(RichProgressBar):  # a progress bar is asked like any other callback
        pass

    kinds = [Metrics, Quiet, Bar, Changed, Callback, _Bar]
    assert weight_modifiers(kinds) == ["Bar", "Changed", "Callback"]


def test_the_gradients_of_a_run_are_predicted_by_what_its_callbacks_declare(monkeypatch):
    settings = changed(options(), {"trainer.precision": "bf16-mixed"})
    model = assemble(settings.model, VOCAB)
    takes = SimpleNamespace(takes_bf16_gradients=lambda _: True)
    monkeypatch.setattr(prediction, "weight_modifiers", lambda parts: asked.extend(parts))
    asked: list[object] = []
    prediction._with_bf16_gradients(settings, model, takes, CPU)
    assert settings.callbacks and Metrics in asked
    assert len(asked) == 1 + len(settings.callbacks)
    monkeypatch.undo()
    monkeypatch.setattr(prediction, "layers_with_copies", lambda model: [model.head])
    quiet = type("Quiet", (), {"modifies_weights": False, "takes_bf16_gradients": lambda *_: True})
    assert prediction._with_bf16_gradients(settings, model, quiet(), CPU) == {model.head.weight}
    monkeypatch.delattr(Metrics, "modifies_weights")  # a built-in callback is not trusted either
    assert prediction._with_bf16_gradients(settings, model, quiet(), CPU) == set()


def test_a_layer_that_overrides_forward_says_for_itself_that_it_calls_its_layers():
    from xftrain.model.ffn.gelu import GELU
    from xftrain.train.bf16_weights import _reads_weights

    class Own(GELU):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.up.weight)

    class Activation(GELU):
        def activation(self, x: Tensor) -> Tensor:
            return x

    assert _reads_weights(Own(64, False)) and not _reads_weights(Activation(64, False))

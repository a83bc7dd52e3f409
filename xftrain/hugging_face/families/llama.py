"""`LlamaForCausalLM` (Touvron et al., 2023, arXiv:2302.13971)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import llama_layout
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap

ARCHITECTURE, PRECEDENCE = "LlamaForCausalLM", 0


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = llama_layout.reasons(facts)
    if any(one.bias.window is not None for one in facts.layers):
        found.append("has no window (model.bias=causal)")
    found += llama_layout.reasons_without_rope(facts)
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    return {
        "model_type": "llama",
        **llama_layout.config(facts, max_positions),
        **llama_layout.biases(facts),
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model."""
    return llama_layout.key_map(facts)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    has_biases = llama_layout.has_biases(config)
    return llama_layout.model(config, has_biases=has_biases, is_tied=False)

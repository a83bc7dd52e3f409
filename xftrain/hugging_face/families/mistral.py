"""`MistralForCausalLM`, whose layers all have one window (Jiang et al., 2023, arXiv:2310.06825)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import llama_layout, values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap

ARCHITECTURE, PRECEDENCE = "MistralForCausalLM", 1


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = llama_layout.reasons(facts)
    if len({one.bias.window for one in facts.layers}) > 1:
        found.append("has the same window in all layers")
    found += llama_layout.reasons_without_rope(facts)
    if facts.has_biases:
        found.append("has no biases (model.linear_bias=false)")
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    return {
        "model_type": "mistral",
        **llama_layout.config(facts, max_positions),
        "sliding_window": facts.layers[0].bias.window,
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model."""
    return llama_layout.key_map(facts)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    if config.get("layer_types") is not None:
        raise values.wrong(
            "layer_types", "MistralForCausalLM has layers of one kind", config["layer_types"]
        )
    found = llama_layout.model(config, has_biases=False, is_tied=False, num_kv_heads=8)
    window = config.get("sliding_window", 4096)
    if window is not None:
        found["bias"] = {"name": "window", "window": values.integer(config, "sliding_window", 4096)}
    return found

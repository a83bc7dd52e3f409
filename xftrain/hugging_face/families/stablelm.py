"""`StableLmForCausalLM`: Llama with LayerNorm, and rotary positions of a part of the features.

Bellagente et al., 2024, arXiv:2402.17834.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import llama_layout, values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap

ARCHITECTURE, PRECEDENCE = "StableLmForCausalLM", 7


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = llama_layout.reasons(facts, ("fraction",), norm="layernorm")
    if any(one.bias.window is not None for one in facts.layers):
        found.append("has no window (model.bias=causal)")
    found += llama_layout.reasons_without_rope(facts)
    if facts.has_biases:
        found.append("has no biases (model.linear_bias=false)")
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    shared = llama_layout.config(facts, max_positions)
    del shared["rms_norm_eps"], shared["head_dim"]
    factor = {"partial_rotary_factor": facts.layers[0].rope_fraction}
    return {
        "model_type": "stablelm",
        **shared,
        **factor,
        "rope_parameters": {**shared["rope_parameters"], **factor},
        "layer_norm_eps": facts.eps,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "hidden_dropout": 0.0,
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model; its norms always have biases, which are 0."""
    shared = llama_layout.key_map(facts)
    zeros = {theirs: (facts.dim,) for theirs in llama_layout.norm_biases(facts).values()}
    return KeyMap(shared.rules, zeros, shared.ignored, shared.tied)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    for key in ("use_qkv_bias", "qk_layernorm", "use_parallel_residual"):
        values.expect(config, key, False)
    found = llama_layout.model(
        config, has_biases=False, is_tied=False, num_kv_heads=32, rope_fraction=0.25
    )
    found["norm"] = {"name": "layernorm", "eps": values.number(config, "layer_norm_eps", 1e-5)}
    return found

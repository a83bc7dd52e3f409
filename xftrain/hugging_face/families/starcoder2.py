"""`Starcoder2ForCausalLM`: rope, LayerNorm, and a feed-forward without a gate.

Lozhkov et al., 2024, arXiv:2402.19173.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import llama_layout, values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap, Rule

ARCHITECTURE, PRECEDENCE = "Starcoder2ForCausalLM", 5
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "relu2")


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = facts.reasons_of_extras()
    if facts.norm != "layernorm":
        found.append("has LayerNorm (model.norm=layernorm)")
    if facts.learned_positions is not None or any(o.rope_base is None for o in facts.layers):
        found.append("has rotary positions in every layer (model.pos=rope)")
    if any(one.activation not in _ACTIVATIONS or one.is_gated for one in facts.layers):
        found.append("has a feed-forward without a gate (model.ffn=gelu or relu2)")
    if any(one.bias.slopes is not None for one in facts.layers):
        found.append("has no ALiBi (model.bias=causal or window)")
    if any(one.bias.scale is not None or one.bias.softcap is not None for one in facts.layers):
        found.append("has no scale or soft cap of scores of its own")
    kinds = {
        (one.num_kv_heads, one.activation, one.hidden_dim, one.rope_base, one.bias.window)
        for one in facts.layers
    }
    if len(kinds) > 1:
        found.append("has layers of one kind (model.layers.pattern=null)")
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    shared = llama_layout.config(facts, max_positions)
    del shared["rms_norm_eps"], shared["head_dim"]
    return {
        "model_type": "starcoder2",
        **shared,
        "norm_epsilon": facts.eps,
        "use_bias": facts.has_biases,
        "sliding_window": facts.layers[0].bias.window,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model; its norms always have biases, which may be 0."""
    shared = llama_layout.key_map(facts)
    rules = [rule for rule in shared.rules if ".ffn." not in rule.ours]
    biases = llama_layout.norm_biases(facts)
    for index in range(len(facts.layers)):
        ours, theirs = f"blocks.{index}", f"model.layers.{index}"
        for kind in ("weight", "bias") if facts.has_biases else ("weight",):
            rules += [
                Rule(f"{ours}.ffn.up.{kind}", (f"{theirs}.mlp.c_fc.{kind}",)),
                Rule(f"{ours}.ffn.down.{kind}", (f"{theirs}.mlp.c_proj.{kind}",)),
            ]
    if facts.has_biases:
        rules += [Rule(ours, (theirs,)) for ours, theirs in biases.items()]
        biases = {}
    zeros = {theirs: (facts.dim,) for theirs in biases.values()}
    return KeyMap(tuple(rules), zeros, shared.ignored, shared.tied)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    shared = {key: value for key, value in config.items() if key != "hidden_act"}
    has_biases = values.flag(config, "use_bias", True)
    found = llama_layout.model(shared, has_biases=has_biases, is_tied=True, num_kv_heads=2)
    found["ffn"] |= values.plain_ffn(config, "hidden_act", "gelu_pytorch_tanh")
    found["norm"] = {"name": "layernorm", "eps": values.number(config, "norm_epsilon", 1e-5)}
    if config.get("sliding_window") is not None:
        found["bias"] = {"name": "window", "window": values.integer(config, "sliding_window")}
    return found

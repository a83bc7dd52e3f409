"""`Qwen3ForCausalLM`: Llama with QK-norm, whose layers may each have a window.

Yang et al., 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import llama_layout, values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap

ARCHITECTURE, PRECEDENCE = "Qwen3ForCausalLM", 6
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = llama_layout.reasons(facts, ("qk_norm",))
    if not facts.has_qk_norm:
        found.append("has a norm of queries and keys (model.qk_norm=true)")
    if len({one.bias.window for one in facts.layers} - {None}) > 1:
        found.append("has windows of one size")
    found += llama_layout.reasons_without_rope(facts)
    if facts.has_biases:
        found.append("has no biases (model.linear_bias=false)")
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    windows = [one.bias.window for one in facts.layers]
    window = next((one for one in windows if one is not None), None)
    return {
        "model_type": "qwen3",
        **llama_layout.config(facts, max_positions),
        "attention_bias": False,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [_GLOBAL if one is None else _LOCAL for one in windows],
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model."""
    return llama_layout.key_map(facts)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    values.expect(config, "attention_bias", False)
    config = {"head_dim": 128, **config}  # the default of the class, whatever its other sizes are
    found = llama_layout.model(config, has_biases=False, is_tied=False, num_kv_heads=32)
    found["qk_norm"] = True
    has_window = values.flag(config, "use_sliding_window", False)
    window = values.integer(config, "sliding_window", 4096) if has_window else None
    pattern = ["global" if window is None else kind for kind in _kinds(config)]
    kinds: dict[str, dict[str, Any]] = {
        "local": {"bias": {"name": "window", "window": window}},
        "global": {"bias": {"name": "causal"}},
    }
    if set(pattern) == {"local"}:
        found.update(kinds["local"])
    elif "local" in pattern:
        found["layers"] = {"pattern": pattern, **kinds}
    return found


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Whether each layer has the window or not, as `local` or `global`."""
    num_layers = values.integer(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise values.wrong("max_window_layers", "it must be an integer >= 0", first)
        return ["local" if n >= first else "global" for n in range(min(num_layers, 10_000))]
    is_list = isinstance(kinds, list) and len(kinds) == num_layers
    if not is_list or any(kind not in (_LOCAL, _GLOBAL) for kind in kinds):
        rule = f"it must have {_LOCAL} or {_GLOBAL} for each layer"
        raise values.wrong("layer_types", rule, kinds)
    return ["local" if kind == _LOCAL else "global" for kind in kinds]

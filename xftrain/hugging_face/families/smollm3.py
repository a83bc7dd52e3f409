"""`SmolLM3ForCausalLM`: Llama whose layers may each have a window, and may have no positions.

Bakouch et al., 2025, https://huggingface.co/blog/smollm3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xftrain.hugging_face import llama_layout, values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap

ARCHITECTURE, PRECEDENCE = "SmolLM3ForCausalLM", 2
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = llama_layout.reasons(facts)
    if len({one.bias.window for one in facts.layers} - {None}) > 1:
        found.append("has windows of one size")
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    windows = [one.bias.window for one in facts.layers]
    window = next((one for one in windows if one is not None), None)
    return {
        "model_type": "smollm3",
        **llama_layout.config(facts, max_positions),
        **llama_layout.biases(facts),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [_GLOBAL if one is None else _LOCAL for one in windows],
        "no_rope_layers": [int(one.rope_base is not None) for one in facts.layers],
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model."""
    return llama_layout.key_map(facts)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    has_biases = llama_layout.has_biases(config)
    found = llama_layout.model(
        config, has_biases=has_biases, is_tied=True, num_kv_heads=4, rope_base=2_000_000.0
    )
    num_layers = found["num_layers"]
    every = values.integer(config, "no_rope_layer_interval", 4)
    rotary = config.get("no_rope_layers")
    if rotary is None:
        rotary = [int((index + 1) % every != 0) for index in range(min(num_layers, 10_000))]
    has_window = values.flag(config, "use_sliding_window", False) and (
        config.get("sliding_window") is not None
    )
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_LOCAL if has_window and not one else _GLOBAL for one in _checked(rotary)]
    for key, of_layers, allowed in (
        ("no_rope_layers", rotary, (0, 1)),
        ("layer_types", kinds, (_LOCAL, _GLOBAL)),
    ):
        is_list = isinstance(of_layers, list) and len(of_layers) >= num_layers
        if not is_list or any(one not in allowed for one in of_layers):
            raise values.wrong(key, f"it must have one of {allowed} for each layer", of_layers)
    window = values.integer(config, "sliding_window") if has_window else None
    names = {}
    pattern = []
    for is_rotary, kind in list(zip(rotary, kinds, strict=False))[:num_layers]:
        is_local = window is not None and kind == _LOCAL
        name = ("local" if is_local else "global") + ("" if is_rotary else "_nope")
        bias = {"name": "window", "window": window} if is_local else {"name": "causal"}
        names[name] = {"bias": bias, **({} if is_rotary else {"pos": {"name": "none"}})}
        pattern.append(name)
    if set(names) != {"global"}:
        found["layers"] = {"pattern": pattern, **names}
    return found


def _checked(rotary: Any) -> Sequence[Any]:
    return rotary if isinstance(rotary, list) else []

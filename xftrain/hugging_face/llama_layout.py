"""What Llama and the classes derived from it share: names, sizes, and what each layer must be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from xftrain.hugging_face import values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap, Rule

_NORMS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}
_FFN = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}


def reasons(facts: Facts, expressed: Collection[str] = (), norm: str = "rmsnorm") -> list[str]:
    """Why a class of this layout does not express a model.

    Args:
        facts: the model.
        expressed: see `Facts.reasons_of_extras`.
        norm: the norm of the class.
    """
    first = facts.layers[0]
    found = facts.reasons_of_extras(expressed)
    if facts.norm != norm:
        found.append(f"has {_NORMS[norm]} (model.norm={norm})")
    if facts.learned_positions is not None:
        found.append("has rotary positions (model.pos=rope)")
    if any(not one.is_gated or one.activation not in _FFN for one in facts.layers):
        found.append("has a gated feed-forward (model.ffn=swiglu or geglu)")
    if any(one.bias.slopes is not None for one in facts.layers):
        found.append("has no ALiBi (model.bias=causal or window)")
    if any(one.bias.scale is not None or one.bias.softcap is not None for one in facts.layers):
        found.append("has no scale or soft cap of scores of its own")
    sizes = {(one.num_kv_heads, one.activation, one.hidden_dim) for one in facts.layers}
    ropes = {(one.rope_base, one.rope_fraction) for one in facts.layers if one.rope_base}
    if len(sizes) > 1 or len(ropes) > 1:
        found.append("has the same heads, feed-forward and rope base in all layers")
    if facts.dim % facts.num_heads or first.hidden_dim == 0:
        found.append("has heads of dim / num_heads")
    return found


def reasons_without_rope(facts: Facts) -> list[str]:
    """Why a class whose layers are all rotary does not express a model."""
    if any(one.rope_base is None for one in facts.layers) and facts.learned_positions is None:
        return ["has rotary positions in every layer (model.pos=rope)"]
    return []


def norm_biases(facts: Facts) -> dict[str, str]:
    """The names of the biases of norms in a class with LayerNorm, by our names."""
    found = {"norm.bias": "model.norm.bias"}
    for index in range(len(facts.layers)):
        ours, theirs = f"blocks.{index}", f"model.layers.{index}"
        found[f"{ours}.norm_attn.bias"] = f"{theirs}.input_layernorm.bias"
        found[f"{ours}.norm_ffn.bias"] = f"{theirs}.post_attention_layernorm.bias"
    return found


def biases(facts: Facts) -> dict[str, Any]:
    """The keys of biases of Llama and SmolLM3."""
    return {"attention_bias": facts.has_biases, "mlp_bias": facts.has_biases}


def has_biases(config: Mapping[str, Any]) -> bool:
    """Whether linear layers have biases, by the keys of `biases`; some alone is refused."""
    found = values.flag(config, "attention_bias", False)
    if values.flag(config, "mlp_bias", False) != found:
        raise values.wrong("mlp_bias", "it must be equal to attention_bias", not found)
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The keys of `config.json` that the classes share."""
    first = facts.layers[0]
    base = next((one.rope_base for one in facts.layers if one.rope_base is not None), 10000.0)
    return {
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.dim,
        "intermediate_size": first.hidden_dim,
        "num_hidden_layers": len(facts.layers),
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": first.num_kv_heads,
        "head_dim": facts.head_dim,
        "hidden_act": first.activation,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": facts.eps,
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "tie_word_embeddings": facts.is_tied,
        "attention_dropout": 0.0,
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the classes have the weights."""
    rules = [
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ]
    for index, layer in enumerate(facts.layers):
        ours, theirs = f"blocks.{index}", f"model.layers.{index}"
        rows = (facts.dim, *[layer.num_kv_heads * facts.head_dim] * 2)
        qkv = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
        up = [f"{theirs}.mlp.{name}_proj" for name in ("gate", "up")]
        for kind in ("weight", "bias") if facts.has_biases else ("weight",):
            rules += [
                Rule(f"{ours}.heads.qkv.{kind}", tuple(f"{n}.{kind}" for n in qkv), rows),
                Rule(f"{ours}.out.{kind}", (f"{theirs}.self_attn.o_proj.{kind}",)),
                Rule(
                    f"{ours}.ffn.up.{kind}",
                    tuple(f"{n}.{kind}" for n in up),
                    (layer.hidden_dim,) * 2,
                ),
                Rule(f"{ours}.ffn.down.{kind}", (f"{theirs}.mlp.down_proj.{kind}",)),
            ]
        if facts.has_qk_norm:
            rules += [
                Rule(f"{ours}.norm_{name}.weight", (f"{theirs}.self_attn.{name}_norm.weight",))
                for name in "qk"
            ]
        rules += [
            Rule(f"{ours}.norm_attn.weight", (f"{theirs}.input_layernorm.weight",)),
            Rule(f"{ours}.norm_ffn.weight", (f"{theirs}.post_attention_layernorm.weight",)),
        ]
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if facts.is_tied else None
    return KeyMap(tuple(rules), {}, (".rotary_emb.inv_freq",), tied)


def model(
    config: Mapping[str, Any],
    *,
    has_biases: bool,
    is_tied: bool,
    num_kv_heads: int | None = None,
    rope_base: float = 10000.0,
    rope_fraction: float | None = None,
) -> dict[str, Any]:
    """The `model` node that the shared keys describe, with causal attention.

    Args:
        config: content of `config.json`.
        has_biases: whether linear layers have biases.
        is_tied: default of `tie_word_embeddings` in the class.
        num_kv_heads: default of `num_key_value_heads` in the class; None is all heads.
        rope_base: default of `rope_theta` in the class.
        rope_fraction: default of `partial_rotary_factor` in the class; None if it has no such key.
    """
    dim, num_heads = (
        values.integer(config, "hidden_size"),
        values.integer(config, "num_attention_heads"),
    )
    if values.integer(config, "head_dim", max(1, dim // num_heads)) * num_heads != dim:
        raise values.wrong(
            "head_dim", "it must be hidden_size / num_attention_heads", config.get("head_dim")
        )
    ffn = values.one_of(config, "hidden_act", _FFN, "silu")
    return {
        "dim": dim,
        "num_layers": values.integer(config, "num_hidden_layers"),
        "num_heads": num_heads,
        "vocab_size": values.integer(config, "vocab_size"),
        "tie_embeddings": values.flag(config, "tie_word_embeddings", is_tied),
        "linear_bias": has_biases,
        "attn": {"name": "auto"},
        "bias": {"name": "causal"},
        "pos": _rope(config, rope_base, rope_fraction),
        "heads": {
            "name": "gqa",
            "num_kv_heads": _num_kv_heads(config, num_heads, num_kv_heads),
        },
        "ffn": {"name": ffn, "hidden_dim": values.integer(config, "intermediate_size")},
        "norm": {"name": "rmsnorm", "eps": values.number(config, "rms_norm_eps", 1e-6)},
    }


def _rope(
    config: Mapping[str, Any], default_base: float, default_fraction: float | None
) -> dict[str, Any]:
    """The rotary encoding, in the form of any version of transformers."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise values.wrong("rope_parameters", "it must be a mapping", scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise values.wrong("rope_type", "xftrain has only unscaled rotary positions", kind)
    named = scaling if "rope_theta" in scaling else config
    found = {"name": "rope", "base": values.number(named, "rope_theta", default_base)}
    if default_fraction is None:
        values.expect(scaling, "partial_rotary_factor", 1.0, 1)
        return found
    named = scaling if "partial_rotary_factor" in scaling else config
    fraction = values.number(named, "partial_rotary_factor", default_fraction)
    return {**found, "fraction": fraction}


def _num_kv_heads(config: Mapping[str, Any], num_heads: int, default: int | None) -> int:
    """G; null is all heads, and an absent key the class's default."""
    absent = default if default and "num_key_value_heads" not in config else num_heads
    return values.integer(config, "num_key_value_heads", absent)

"""Describes a built model in the terms of the classes of `transformers`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from xftrain.interfaces import AttnBias
from xftrain.model.ffn.geglu import GEGLU
from xftrain.model.ffn.gelu import GELU
from xftrain.model.ffn.relu2 import ReLU2
from xftrain.model.ffn.swiglu import SwiGLU
from xftrain.model.gpt import GPT
from xftrain.model.heads.gqa import GQA
from xftrain.model.heads.mha import MHA
from xftrain.model.heads.mqa import MQA
from xftrain.model.layer_spec import built_bias
from xftrain.model.norm.layernorm import LayerNorm
from xftrain.model.norm.rmsnorm import RMSNorm
from xftrain.model.pos.learned import Learned
from xftrain.model.pos.none import None_
from xftrain.model.pos.rope import RoPE
from xftrain.model.softcap import SoftCapped

# The activations by the names that `transformers` has for them.
_ACTIVATIONS: dict[type, tuple[str, bool]] = {  # name, and whether a gate is activated
    SwiGLU: ("silu", True),
    GEGLU: ("gelu_pytorch_tanh", True),
    GELU: ("gelu_pytorch_tanh", False),
    ReLU2: ("relu2", False),
}
_NORMS: dict[type, str] = {LayerNorm: "layernorm", RMSNorm: "rmsnorm"}
_HEADS = (MHA, GQA, MQA)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        bias: the attention bias.
        num_kv_heads: G.
        rope_base: base of the rotary encoding; None if positions are not rotary.
        rope_fraction: the share of features that it rotates; 1 if positions are not rotary.
        activation: name of the activation.
        is_gated: whether the activation is applied to a gate.
        hidden_dim: inner width of the feed-forward.
    """

    bias: AttnBias
    num_kv_heads: int
    rope_base: float | None
    rope_fraction: float
    activation: str
    is_gated: bool
    hidden_dim: int


@dataclass(frozen=True)
class Facts:
    """A model that is made of options of this package.

    Attributes:
        dim: D.
        num_heads: H.
        vocab_size: V, the rows of the embedding.
        layers: the layers.
        norm: `layernorm` or `rmsnorm`.
        eps: what the norm adds to the variance.
        learned_positions: number of learned positions; None if positions are not learned.
        is_tied: whether the output matrix is the embedding table.
        has_biases: whether linear layers have biases.
        logit_softcap: cap of the logits; None if they are not capped.
        has_qk_norm: whether queries and keys are normalized.
        has_embedding_norm: whether the input of the first layer is normalized.
        reasons: what of the model is a class of the user's, which no class expresses.
    """

    dim: int
    num_heads: int
    vocab_size: int
    layers: tuple[Layer, ...]
    norm: str
    eps: float
    learned_positions: int | None
    is_tied: bool
    has_biases: bool
    logit_softcap: float | None
    has_qk_norm: bool
    has_embedding_norm: bool
    reasons: tuple[str, ...]

    @property
    def head_dim(self) -> int:
        """K."""
        return self.dim // self.num_heads

    def reasons_of_extras(self, expressed: Collection[str] = ()) -> list[str]:
        """Why a class does not express the parts that only some models have.

        Args:
            expressed: the keys of the parts that the class has.
        """
        extras = {
            "qk_norm": (self.has_qk_norm, "has no norm of queries and keys (model.qk_norm=false)"),
            "norm_embedding": (
                self.has_embedding_norm,
                "has no norm of the embedding (model.norm_embedding=false)",
            ),
            "fraction": (
                any(layer.rope_fraction != 1 for layer in self.layers),
                "rotates all features of a head (model.pos.fraction=1)",
            ),
        }
        return [reason for key, (has, reason) in extras.items() if has and key not in expressed]


def describe(model: GPT) -> Facts:
    """Describes a model; the model may be on the meta device."""
    reasons: dict[str, None] = {}
    norm = _known(model.norm, _NORMS, "norm", reasons) or ""
    layers = []
    for index, (spec, block) in enumerate(zip(model.specs, model.blocks, strict=True)):
        assert isinstance(block, nn.Module)
        ffn, heads, pos = block.ffn, block.heads, model.position_encoding(index)
        activation, is_gated = _known(ffn, _ACTIVATIONS, "ffn", reasons) or ("", False)
        if type(ffn) is GELU and ffn.exact:
            activation = "gelu"
        if type(heads) not in _HEADS:
            reasons[f"model.heads is {type(heads).__name__}"] = None
        if type(pos) not in (RoPE, Learned, None_):
            reasons[f"model.pos is {type(pos).__name__}"] = None
        bias = built_bias(spec.bias, model.num_heads, None)
        if not bias.causal or bias.additive_HMM is not None:
            recipe = spec.bias.recipe if isinstance(spec.bias, SoftCapped) else spec.bias
            reasons[f"model.bias is {type(recipe).__name__}"] = None
        down = getattr(ffn, "down", None)
        layers.append(
            Layer(
                bias,
                heads.num_kv_heads,  # type: ignore[union-attr, arg-type]
                pos.base if type(pos) is RoPE else None,
                pos.fraction if type(pos) is RoPE else 1.0,
                activation,
                is_gated,
                down.weight.shape[1] if isinstance(down, nn.Linear) else 0,
            )
        )
    learned = model.pos.max_positions if type(model.pos) is Learned else None
    return Facts(
        model.embed.weight.shape[1],
        model.num_heads,
        model.vocab_size,
        tuple(layers),
        norm,
        getattr(model.norm, "eps", 0.0) or 0.0,
        learned,
        model.head.weight is model.embed.weight,
        any(name.endswith("out.bias") for name, _ in model.named_parameters()),
        model.logit_softcap,
        any(block.norm_q is not None for block in model.blocks),
        model.norm_embed is not None,
        tuple(reasons),
    )


def _known(part: object, known: dict[type, _T], group: str, reasons: dict[str, None]) -> _T | None:
    """What is known of a part's class; notes a reason if it is a class of the user's."""
    found = known.get(type(part))
    if found is None:
        reasons[f"model.{group} is {type(part).__name__}"] = None
    return found

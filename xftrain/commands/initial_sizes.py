"""Compares the sizes of the weights in `init_from` with those of the model, before any is read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from xftrain.commands import builder
from xftrain.errors import ConfigError
from xftrain.model.gpt import GPT
from xftrain.train.same_run import differences, flat
from xftrain.utils.printable import one_line, shortened

EMBEDDING, HEAD, POSITIONS = "embed.weight", "head.weight", "pos.table.weight"
_BLOCKS = "blocks."
# Keys of `model` that change only how it trains, and those that the shapes of the weights decide.
_TRAINING = ("model.attn", "model.dropout", "model.init_", "model.residual_dtype")
_TRAINING_PREFIXES = (*_TRAINING, "model.activation_")
_SIZES = ("dim", "num_layers", "vocab_size", "tie_embeddings", "linear_bias", "heads")
_SIZE_PREFIXES = tuple(f"model.{key}" for key in _SIZES)
_SIZE_ENDINGS = (".hidden_dim", ".max_positions")
_PARTS = ("bias", "pos", "ffn")  # of a layer; the shapes show its heads
_OF_LAYERS = ("layers", *_PARTS)
_MAX_SHOWN = 5  # names or keys in a message

Shapes = Mapping[str, tuple[int, ...]]
log = logging.getLogger(__name__)


def refuse_other_sizes(
    named: str, there: Shapes, model: GPT, num_tokens: int | None, differing: Iterable[str]
) -> None:
    """Refuses weights that do not fit the model.

    A table of learned positions may be longer than that of the model.

    Args:
        named: the override that names the weights.
        there: the shapes of the weights, by our names.
        model: the model, which may be on the meta device.
        num_tokens: the size of the data's vocabulary; None if it is not known yet.
        differing: what else of its model is different.

    Raises:
        ConfigError: for another size, the sentence has both values and the key; otherwise it lists
            what is missing, unexpected, or of another shape.
    """
    here = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    embedding = there.get(EMBEDDING, ())
    if len(embedding) != 2:
        raise ConfigError(
            f"{named} holds no {EMBEDDING}, so it is of no model of xftrain: weights of a class of "
            "transformers need their config.json, so give the folder that holds both."
        )
    _refuse_other_keys(named, there, here, num_tokens)
    positions, own_positions = (next(iter(s.get(POSITIONS, ())), 0) for s in (there, here))
    if 0 < positions < own_positions:
        raise ConfigError(
            f"{named} has {positions} learned positions, and this run has {own_positions}, the "
            f"last of which were never trained: set model.pos.max_positions={positions}, and seq "
            "to no more."
        )
    _refuse_others(named, there, here, differing)


def _refuse_other_keys(named: str, there: Shapes, here: Shapes, num_tokens: int | None) -> None:
    """Refuses another width, another number of layers, and another size of the vocabulary."""
    rows, dim = there[EMBEDDING]
    own_rows, own_dim = here[EMBEDDING]
    layers, own_layers = (_num_layers(shapes) for shapes in (there, here))
    for key, size, own in (
        ("model.dim", dim, own_dim),
        ("model.num_layers", layers, own_layers),
        ("model.vocab_size", rows, own_rows),
    ):
        if size == own:
            continue
        remedy = f"set {key}={size}"
        if key == "model.vocab_size" and rows < (num_tokens or 0):
            remedy = (
                f"{num_tokens} of them are those of data, so set data, or data.tokenizer, to what "
                "it was trained with"
            )
        raise ConfigError(
            f"{named} is of a model with {key}={size}, and this one has {own}: {remedy}."
        )


def _refuse_others(named: str, there: Shapes, here: Shapes, differing: Iterable[str]) -> None:
    """Refuses weights that are missing, unexpected, or of another shape."""
    missing = [name for name in here if name not in there and name != HEAD]
    unexpected = [one_line(name)[:100] for name in there if name not in here]
    other = [
        f"{name} is {list(there[name])} there and {list(here[name])} here"
        for name in here
        if name in there and not _fits(name, there[name], here[name])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    if found := [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]:
        model = _some(list(differing))
        remedy = f"its model has {model}" if model else "set model as in the run that trained it"
        raise ConfigError(
            f"{named} has other weights than this model: {'; '.join(found)}: {remedy}."
        )


def _fits(name: str, there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether the shapes are equal; the model may use fewer learned positions."""
    is_cut = name == POSITIONS and len(there) == len(here) and there[1:] == here[1:]
    return there == here or (is_cut and there[0] > here[0])


def _num_layers(shapes: Shapes) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(_BLOCKS)})


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


def differing_keys(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """The keys in which two `model` nodes differ, and that change what the model computes.

    Args:
        there: the node of the model that the weights are of, which may be untrusted.
        here: the node of this run.

    Returns:
        For each key that both have, a text as `model.norm.eps=1e-06 (here 1e-05)`.
    """
    if (layers := _layers(there)) is not None and layers == _layers(here):
        # whatever the names of their layers are
        there, here = ({k: v for k, v in n.items() if k not in _OF_LAYERS} for n in (there, here))
    before, after = (flat({"model": node}) for node in (there, here))
    return {
        key: f"{one_line(key)[:100]}={_shown(before[key])} (here {_shown(after[key])})"
        for key in differences({"model": there}, {"model": here})
        if key in before and key in after
        if not key.startswith(_TRAINING_PREFIXES) and not key.endswith(".impl")
    }


def _layers(node: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What each layer computes, beyond what shapes show; None of a malformed node."""
    layers, num_layers = node.get("layers"), node.get("num_layers")
    layers = layers if isinstance(layers, Mapping) else {}
    pattern = layers.get("pattern") or [""]
    if type(num_layers) is not int or not 0 < num_layers <= builder.MAX_LAYERS:
        return None
    if not isinstance(pattern, list | tuple) or not all(isinstance(one, str) for one in pattern):
        return None
    found = []
    for index in range(num_layers):
        own = layers.get(pattern[index % len(pattern)])
        options = {part: node.get(part) for part in _PARTS}
        options |= own if isinstance(own, Mapping) else {}
        kept = flat({part: options[part] for part in _PARTS})
        endings = (".impl", *_SIZE_ENDINGS)
        found.append({key: value for key, value in kept.items() if not key.endswith(endings)})
    return found


def without_sizes(differing: Mapping[str, str]) -> list[str]:
    """The texts of the keys that do not show in the shapes of the weights."""
    return [
        text
        for key, text in differing.items()
        if not key.startswith(_SIZE_PREFIXES) and not key.endswith(_SIZE_ENDINGS)
    ]


def matching_overrides(there: Mapping[str, Any], differing: Iterable[str]) -> str:
    """The overrides that give the model of the weights, except for a pattern of layers."""
    values = flat({"model": there})
    words: dict[str, None] = {}
    for key in differing:
        part = key.rpartition(".")[0]
        if key.startswith("model.layers."):
            continue
        if not key.endswith(".name"):
            words[f"{key}={_shown(values[key])}"] = None
            continue
        words[f"{part}={_shown(values[key])}"] = None
        for own in [one for one in values if one.startswith(f"{part}.") and one != key]:
            if not own.endswith(".impl"):
                words[f"{own}={_shown(values[own])}"] = None
    return " ".join(words)


def _shown(value: Any) -> str:
    value = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return shortened(one_line(str(value)), 60)

"""Maps the names of weights to those of a class of `transformers`, and back, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line


@dataclass(frozen=True)
class Rule:
    """How one weight of ours is stored in the class.

    Attributes:
        ours: its name in the state dict.
        theirs: its name in the class; several names are consecutive rows of ours.
        rows: the number of rows of each of `theirs`, if there are several.
        is_transposed: whether the class stores a matrix as [I, O].
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    is_transposed: bool = False


@dataclass(frozen=True)
class KeyMap:
    """The rules for all weights of a model.

    Attributes:
        rules: a rule for each weight.
        zeros: shapes of weights that the class has and the model has not, which are 0.
        ignored: endings of names that hold no weights, in files of earlier versions.
        tied: names of the class that repeat another one, by that name; they are stored once.
    """

    rules: tuple[Rule, ...]
    zeros: Mapping[str, tuple[int, ...]]
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] | None = None

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights by the names of the class."""
        dtype = next(iter(weights.values())).dtype
        found = {name: torch.zeros(shape, dtype=dtype) for name, shape in self.zeros.items()}
        for rule in self.rules:
            weight = weights[rule.ours].detach()
            parts = weight.split(rule.rows) if rule.rows else (weight,)
            for name, part in zip(rule.theirs, parts, strict=True):
                found[name] = (part.t() if rule.is_transposed else part).contiguous()
        for name in self.tied or ():
            del found[name]
        return found

    def to_ours(self, theirs: Mapping[str, Tensor], named: str = "the folder") -> dict[str, Tensor]:
        """The weights by our names.

        Args:
            theirs: the weights by the names of the class.
            named: the override that names their folder, for messages.

        Raises:
            ConfigError: names are missing or unexpected, or a weight that the model does not have
                is not 0.
        """
        theirs = {n: w for n, w in theirs.items() if not n.endswith(self.ignored or ("\0",))}
        for name, original in (self.tied or {}).items():
            if name not in theirs and original in theirs:
                theirs[name] = theirs[original]
        wanted = [name for rule in self.rules for name in rule.theirs]
        missing = [name for name in wanted if name not in theirs]
        unexpected = [name for name in theirs if name not in {*wanted, *self.zeros}]
        if missing or unexpected:
            raise ConfigError(
                f"{named} has other weights than its config.json says: "
                f"{_listed('missing', missing)}{'; ' if missing and unexpected else ''}"
                f"{_listed('unexpected', unexpected)}; give a complete folder."
            )
        for name in self.zeros:
            if name in theirs and bool(theirs[name].any()):
                raise ConfigError(
                    f"{named} has biases that the model has not, such as {one_line(name)}: set "
                    "model.linear_bias=true, as a run with init_from may."
                )
        found = {}
        for rule in self.rules:
            parts = [theirs[name] for name in rule.theirs]
            parts = [part.t() if rule.is_transposed else part for part in parts]
            found[rule.ours] = (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
        return found


def _listed(what: str, names: Iterable[str]) -> str:
    """Some of the names, and how many there are."""
    names = list(names)
    if not names:
        return ""
    shown = ", ".join(one_line(name)[:100] for name in names[:3])
    return f"{len(names)} {what} ({shown}{', ...' if len(names) > 3 else ''})"

"""Field types for the options of a configuration: a plain type with a constraint on its value.

An option's constructor is its schema. `registry.py` reads the keyword-only parameters of the
class without importing it, so the annotations there are built-in types, `Literal[...]`, or one of
the names below.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class Described:
    """Words for a type that is checked beyond its annotation."""

    text: str


MAX_INTEGER = 2**32 - 1  # limit of every integer; far below what torch and the kernels can hold
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Probability = Annotated[float, Ge(0), Lt(1)]
Seed = Annotated[int, Ge(0), Le(MAX_INTEGER)]  # the range of numpy's seeds
VocabSize = Annotated[int, Ge(2)]
# The side of a square, in pixels or in matrix elements that are drawn as one pixel.
ImageSide = Annotated[int, Ge(1), Le(1024)]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
# Entries with `match`, `lr`, `weight_decay` and `optimizer`, which `checks` checks.
ParamGroups = tuple[dict[str, Any], ...]
# Each entry has the keys that `mixture_sources` checks.
Sources = Annotated[
    dict[str, Any], Described("a mapping of names to sources, each with path and weight")
]
Packing = bool | Literal["best_fit"]
Option = str | dict[str, Any]  # an option's name, or a node with a `name` or a `_target_`

__all__ = [
    "Any",
    "Dtype",
    "Fraction",
    "ImageSide",
    "NonNegativeFloat",
    "NonNegativeInt",
    "Option",
    "Packing",
    "ParamGroups",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "Seed",
    "Sources",
    "VocabSize",
]

"""The interfaces between the parts of the package, and the legend of shape letters.

Read this package first. Its shape letters, which follow xFormers, hold for the whole package.
Tensors that are passed between functions have them as a suffix: `q_BMHK`, `k_BMGK`.

    B  batch            M  sequence positions      D  model width
    H  query heads      G  key/value heads (H is a multiple of G)
    K  head width       V  vocabulary

Data flows one way, once per batch:

    Batch -> bias recipe -> AttnBias -> backend.handle_for(AttnCall) -> a kernel's handle

and then through every block: `backend(q_BMHK, k_BMGK, v_BMGK, handle) -> out_BMHK`. N recipes and
M backends share only `AttnBias`, so that a new bias changes no backend and a new backend no bias.

The definitions are in `batch`, `bias`, `model` (the parts of a model, one per group), `training`
(losses, schedules, optimizers), `memory` (formulas of memory), `data` and `facts`
(what a data source holds); all are imported from here.
"""

from xftrain.interfaces.batch import IGNORED_LABEL, Batch, positions_of
from xftrain.interfaces.bias import AttnBias, AttnCall, AttnCase, AttnShape, format_layers
from xftrain.interfaces.data import DataSource, Split, Vocabulary, load_batch
from xftrain.interfaces.facts import SourceFacts, SplitContent
from xftrain.interfaces.memory import logits_bytes, two_moments_bytes
from xftrain.interfaces.model import (
    Attention,
    Backend,
    BiasRecipe,
    ChoosingBackend,
    FeedForward,
    Heads,
    Norm,
    PositionEncoding,
)
from xftrain.interfaces.training import Loss, LossSums, Optimizer, Schedule, loss_sums

__all__ = [
    "Attention",
    "AttnBias",
    "AttnCall",
    "AttnCase",
    "AttnShape",
    "Backend",
    "Batch",
    "BiasRecipe",
    "ChoosingBackend",
    "DataSource",
    "FeedForward",
    "Heads",
    "IGNORED_LABEL",
    "Loss",
    "LossSums",
    "Norm",
    "Optimizer",
    "PositionEncoding",
    "Schedule",
    "SourceFacts",
    "Split",
    "SplitContent",
    "Vocabulary",
    "format_layers",
    "load_batch",
    "logits_bytes",
    "loss_sums",
    "positions_of",
    "two_moments_bytes",
]

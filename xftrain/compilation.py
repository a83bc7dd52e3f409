"""How torch.compile behaves here: it compiles, or says that it cannot."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config

from xftrain.compile_cache import use_private_compile_cache
from xftrain.errors import ConfigError

log = logging.getLogger(__name__)

Shape = Sequence[int]

_products: list[Any] = []  # operators of ours that are matrix products


def begin_compiling(activation_budget: float = 1.0) -> None:
    """Settings of torch.compile, which are of the whole process.

    Args:
        activation_budget: share of the activations to keep for the backward pass.
    """
    allow_many_shapes()
    if activation_budget < 1:
        _weigh_own_products()
        _count_grouped_attention()
        _keep_random_numbers()
    torch._functorch.config.activation_memory_budget = activation_budget


def end_compiling() -> None:
    """What compiles next in this process, as FlexAttention, keeps its activations."""
    torch._functorch.config.activation_memory_budget = 1.0


def declare_products(operators: Sequence[Any]) -> None:
    """Says which operators are matrix products, for a budget to recompute others before them."""
    _products.extend(operators)


def _weigh_own_products() -> None:
    """torch knows its own products; any other operator it takes for cheap, and drops it first."""
    from torch._functorch import partitioners  # imports much

    known: Callable[[], Any] | None = getattr(partitioners, "get_default_op_list", None)
    if known is None:  # a budget would drop our products before all others
        log.warning("model.activation_budget: products are recomputed first in this torch")
    if known is None or getattr(known, "has_ours", False):
        return

    def with_ours() -> Any:
        found = known()
        found.compute_intensive_ops.update(_products)
        return found

    with_ours.has_ours = True  # type: ignore[attr-defined]
    partitioners.get_default_op_list = with_ours


def _count_grouped_attention() -> None:
    """A budget counts what operators cost, and torch 2.11 does not count attention of fewer K/V."""
    from torch.utils import flop_counter

    count = flop_counter.sdpa_flop_count
    if getattr(count, "has_groups", False):
        return

    def with_groups(query: Shape, key: Shape, value: Shape) -> int:
        key, value = ((*shape[:1], query[1], *shape[2:]) for shape in (key, value))
        return int(count(query, key, value))

    with_groups.has_groups = True  # type: ignore[attr-defined]
    flop_counter.sdpa_flop_count = with_groups


def _keep_random_numbers() -> None:
    """Random numbers are kept for the backward pass, as the rest is computed again from them.

    Under a budget torch draws them anew, so that the backward pass of dropout would drop others
    (pytorch#190758). What is kept are the seeds, a few bytes, from which inductor's numbers follow.

    Raises:
        ConfigError: this torch has no place to do so.
    """
    from torch._functorch import partitioners  # imports much

    choose: Callable[..., list[Any]] | None = getattr(partitioners, "choose_saved_values_set", None)
    if choose is None:
        raise ConfigError(
            f"model.activation_budget must be 1 in torch {torch.__version__}, whose partitioner "
            "would draw the random numbers of dropout anew in the backward pass: use "
            "model.activation_checkpointing."
        )
    if getattr(choose, "keeps_random", False):
        return

    def with_random(joint_graph: Any, node_info: Any, memory_budget: float = 1) -> list[Any]:
        saved = choose(joint_graph, node_info, memory_budget)
        drawn = [node for node in _random_nodes(joint_graph) if node_info.is_required_fw(node)]
        if any(not isinstance(node.meta.get("val"), torch.Tensor) for node in drawn):
            raise ConfigError(
                "model.activation_budget must be 1 for layers that draw several tensors of random "
                f"numbers at once, as {drawn[0].target}: use model.activation_checkpointing."
            )
        return saved + [node for node in drawn if node not in saved]

    with_random.keeps_random = True  # type: ignore[attr-defined]
    partitioners.choose_saved_values_set = with_random
    # what was compiled without this must not come from the cache on disk
    torch.compiler.config.cache_key_tag += " xftrain: random numbers are kept"


def _random_nodes(graph: Any) -> list[Any]:
    """The calls of a graph that draw random numbers."""
    found = []
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in tags:
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        # torch tags attention too, which draws where it drops probabilities alone
        if "dropout_p" not in names or given.get("dropout_p", 0.0) != 0.0:
            found.append(node)
    return found


def allow_many_shapes() -> None:
    """Lifts torch's limit of 8 compilations a function, past which it would quietly run eagerly.

    Each shape, dtype and bias is one compilation; a sweep in one process makes many.
    """
    use_private_compile_cache()
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True

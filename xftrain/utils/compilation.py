"""Process-wide settings of torch.compile: recomputation budget and recompilation limits."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._functorch.config
from torch import nn

from xftrain.errors import ConfigError
from xftrain.utils.compile_cache import use_private_compile_cache

log = logging.getLogger(__name__)

Shape = Sequence[int]


def configure_compilation(activation_budget: float = 1.0, own_matmuls: Sequence[Any] = ()) -> None:
    """Applies the settings of torch.compile, which hold for the whole process.

    Args:
        activation_budget: share of the activations to save for the backward pass.
        own_matmuls: operators that are matmuls and that torch does not know, which a budget
            recomputes last.
    """
    allow_many_shapes()
    if activation_budget < 1:
        _recompute_last(frozenset(own_matmuls))
        _count_grouped_attention_flops()
        _save_random_numbers()
    torch._functorch.config.activation_memory_budget = activation_budget


def reset_compilation() -> None:
    """Resets the activation budget, so that later compilations save all activations."""
    torch._functorch.config.activation_memory_budget = 1.0


@contextmanager
def uncompiled(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context, modules that were compiled in place run uncompiled."""
    compiled = [part._compiled_call_impl for part in parts]
    for part in parts:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in zip(parts, compiled, strict=True):
            part._compiled_call_impl = call


def _recompute_last(matmuls: frozenset[Any]) -> None:
    """Adds matmuls of this package to torch's expensive operators.

    torch treats an operator that it does not know as cheap, and recomputes it first.
    """
    from torch._functorch import partitioners  # a slow import

    known: Callable[[], Any] | None = getattr(partitioners, "get_default_op_list", None)
    if known is None:
        log.warning(
            "model.activation_budget: torch %s recomputes xftrain's matmuls first",
            torch.__version__,
        )
    if known is None or matmuls <= getattr(known, "own_matmuls", frozenset()):
        return

    def with_own_matmuls() -> Any:
        found = known()
        found.compute_intensive_ops.update(matmuls)
        return found

    with_own_matmuls.own_matmuls = matmuls  # type: ignore[attr-defined]
    partitioners.get_default_op_list = with_own_matmuls


def _count_grouped_attention_flops() -> None:
    """Makes torch's FLOP counter accept attention with fewer K/V heads, which torch 2.11 rejects.

    The activation budget weighs operators by their FLOPs.
    """
    from torch.utils import flop_counter

    count = flop_counter.sdpa_flop_count
    if getattr(count, "has_groups", False):
        return

    def with_groups(query: Shape, key: Shape, value: Shape) -> int:
        key, value = ((*shape[:1], query[1], *shape[2:]) for shape in (key, value))
        return int(count(query, key, value))

    with_groups.has_groups = True  # type: ignore[attr-defined]
    flop_counter.sdpa_flop_count = with_groups


def _save_random_numbers() -> None:
    """Saves random numbers for the backward pass instead of drawing them again.

    Under a budget torch recomputes them, so that the backward pass of dropout would drop other
    elements (pytorch#190758). Only inductor's seeds are saved, a few bytes.

    Raises:
        ConfigError: this torch version lacks the hook for it.
    """
    from torch._functorch import partitioners  # a slow import

    choose: Callable[..., list[Any]] | None = getattr(partitioners, "choose_saved_values_set", None)
    if choose is None:
        raise ConfigError(
            f"model.activation_budget must be 1 in torch {torch.__version__}, whose partitioner "
            "would draw the random numbers of dropout again in the backward pass: use "
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
    # code that was compiled without this must not be loaded from the cache on disk
    torch.compiler.config.cache_key_tag += " xftrain: random numbers are kept"


def _random_nodes(graph: Any) -> list[Any]:
    """The nodes of a graph that draw random numbers."""
    found = []
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in tags:
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        # torch tags attention as well, which draws random numbers only with dropout
        if "dropout_p" not in names or given.get("dropout_p", 0.0) != 0.0:
            found.append(node)
    return found


def allow_many_shapes() -> None:
    """Lifts torch's limit of 8 compilations per function, after which it silently runs eagerly.

    Each shape, dtype and bias is one compilation; a sweep in one process needs many.
    """
    use_private_compile_cache()
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True

"""The attention backends of the package, found on disk, and the kernels that they run."""

from __future__ import annotations

from collections.abc import Sequence

from xftrain.config import registry
from xftrain.interfaces import AttnCase, Backend, ChoosingBackend, format_layers


def all_backends() -> list[Backend]:
    """Every built-in backend that computes attention itself, the most preferred first."""
    found = [
        registry.load_class("model/attn", name)() for name in registry.option_names("model/attn")
    ]
    backends = [backend for backend in found if not isinstance(backend, ChoosingBackend)]
    return sorted(backends, key=lambda backend: (backend.rank, backend.name))


def kernel_name(backend: Backend, cases: Sequence[AttnCase]) -> str:
    """The name of the kernel that runs; if layers differ, each kernel with its layers."""
    layers: dict[str, list[int]] = {}
    for case in cases:
        name = backend.kernel_name(case.call)
        layers.setdefault(name, []).extend(case.layers)
    if len(layers) == 1:
        return next(iter(layers))
    return "; ".join(f"{name} in {format_layers(sorted(n))}" for name, n in layers.items())

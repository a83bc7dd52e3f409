"""The parts of a model: backends, biases, position encodings, heads, feed-forwards and norms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.interfaces.bias import AttnBias, AttnCall, AttnShape

# (q_BMHK, k_BMGK, v_BMGK, handle) -> out_BMHK
Attention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


@runtime_checkable
class BiasRecipe(Protocol):
    """Turns a batch into facts, once a batch (`conf/model/bias/`)."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The facts for one batch; `num_heads` is H."""
        ...


class Backend(ABC):
    """One way to compute attention (`conf/model/attn/`).

    Every backend of the package is tested against the float64 meaning of every bias, or lists the
    reasons why it does not run it.

    Attributes:
        name: the option's word.
        rank: `auto` and refusals name backends of lower rank first.
        needs_compilation: it cannot be timed without compiling it, so `auto` leaves it out.
        takes_scale: it multiplies q k^T by `AttnCall.scale`; else a bias with a scale of its own
            is refused.
        takes_softcap: it caps scores as `AttnBias.softcap` says; else such a bias is refused.
        smaller_option: the option of its group that needs less memory, named where memory runs out.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 50
    needs_compilation: ClassVar[bool] = False
    takes_scale: ClassVar[bool] = False
    takes_softcap: ClassVar[bool] = False
    smaller_option: ClassVar[str | None] = None

    @abstractmethod
    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """Reasons why its kernel cannot run a call; empty means that it can.

        Facts that do not fit the batch, and a scale or a soft cap that the class does not say that
        it takes, are refused before, for every backend alike.

        Args:
            call: what is to be computed, and where.
            needs_grad: backward as well as forward.
        """

    @abstractmethod
    def handle_for(self, call: AttnCall) -> Any:
        """The kernel's own form of the bias. Once a batch, outside any compiled region."""

    @abstractmethod
    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: Any) -> Tensor:
        """Attention of what the handle was made for: [B, M, H, K] in the dtype of q."""

    @abstractmethod
    def kernel_for(self, call: AttnCall) -> str:
        """The name of the kernel that really runs, for logs, TensorBoard and benchmark rows."""

    def too_slow_to_time(self, call: AttnCall) -> list[str]:
        """Reasons why `auto` does not time this backend at such sizes; empty means it does."""
        return []

    def stand_in(self, call: AttnCall) -> Attention | None:
        """Attention that saves the tensors that this backend saves for its backward pass.

        The memory prediction calls it with fake tensors, which have sizes and no memory, and reads
        the autograd graph of the result. None has it make a handle and run the backend itself on
        fake tensors, which plain PyTorch code can; where that fails, the peak is called unknown.
        """
        return None

    def transient_bytes(self, call: AttnCall) -> int:
        """Bytes that its backward pass needs for a moment beside the gradient of one tensor."""
        return 0

    # What the rest of the package calls, as `backend.unsupported(*call)`: the checks that all
    # backends have in common, and then the backend's own method.

    def unsupported(
        self,
        bias: AttnBias,
        shape: AttnShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        needs_grad: bool = True,
    ) -> list[str]:
        """Reasons why this cannot run; empty means that it runs, forward and backward."""
        if found := [*bias.misfits(shape), *self._score_reasons(bias)]:
            return found
        return self.reasons(AttnCall(bias, shape, dtype, device), needs_grad=needs_grad)

    def prepare(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """The handle of a call.

        Raises:
            ConfigError: the facts do not fit the batch, or are not among those that it takes.
        """
        bias.check_fits(shape)
        if found := self._score_reasons(bias):
            raise ConfigError(f"model.attn cannot compute model.bias: {'; '.join(found)}.")
        return self.handle_for(AttnCall(bias, shape, dtype, device))

    def kernel(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> str:
        """The name of the kernel that runs a call."""
        return self.kernel_for(AttnCall(bias, shape, dtype, device))

    def _score_reasons(self, bias: AttnBias) -> list[str]:
        found = []
        if bias.scale is not None and not self.takes_scale:
            found.append(
                f"it multiplies scores by K**-0.5 alone, and the bias by {bias.scale:g} (scale)"
            )
        if bias.softcap is not None and not self.takes_softcap:
            found.append(f"it cannot cap scores, and the bias does at {bias.softcap:g} (softcap)")
        return found


class PositionEncoding(Protocol):
    """Tells positions apart (`conf/model/pos/`).

    A constant `changes_embeddings = True` of the class says that `embed` does something. Such an
    encoding is that of the whole model, and cannot be that of single layers.

    Attributes:
        max_positions: the longest document, or None where any length will do.
    """

    max_positions: int | None

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Token embeddings, before the first layer."""
        ...

    def prepare(self, positions_1M: Tensor) -> Any:
        """What `apply_to` needs of the positions, once a batch."""
        ...

    def apply_to(self, q_BMHK: Tensor, k_BMGK: Tensor, prepared: Any) -> tuple[Tensor, Tensor]:
        """q and k of a layer, as attention compares them."""
        ...


class Heads(Protocol):
    """Projects the residual stream to queries, keys and values (`conf/model/heads/`).

    Constructor: `(dim, num_heads, linear_bias, *, <options>)`; a `torch.nn.Module`.

    Attributes:
        num_kv_heads: G; H is a multiple of it.
    """

    num_kv_heads: int

    def __call__(self, x_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_BMHK, k_BMGK and v_BMGK of the normalized residual stream."""
        ...


class FeedForward(Protocol):
    """The feed-forward of a layer (`conf/model/ffn/`).

    Constructor: `(dim, linear_bias, *, <options>)`; a `torch.nn.Module`. It may have more:
    `unsupported(device) -> list[str]`, the reasons why it cannot run there, and `stand_in()`, a
    module with its weights for the memory prediction, where it cannot run on fake tensors itself.
    """

    def __call__(self, x_BMD: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, M, D] to [B, M, D], which is added to the residual stream.

        One with an auxiliary loss, as a mixture of experts has to balance its experts, returns a
        pair: that and the loss, a scalar. It is a mean over the tokens of `x_BMD`, multiplied by
        its weight already. Training minimizes the mean cross-entropy plus the auxiliary losses of
        all layers; where a step has several batches, on one rank or more, each counts by its
        number of labels. It is recorded as `train/aux_loss`, and validation leaves it out.
        """
        ...


class Norm(Protocol):
    """Normalizes each position (`conf/model/norm/`).

    Constructor: `(dim, linear_bias, *, <options>)`; a `torch.nn.Module`.
    """

    def __call__(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] to [B, M, D]."""
        ...

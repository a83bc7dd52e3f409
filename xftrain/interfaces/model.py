"""The interfaces of backends, biases, position encodings, heads, feed-forwards and norms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.interfaces.batch_checks import describe_value
from xftrain.interfaces.bias import AttnBias, AttnCall, AttnCase, AttnShape

# (q_BMHK, k_BMGK, v_BMGK, handle) -> out_BMHK
Attention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


@runtime_checkable
class BiasRecipe(Protocol):
    """Builds the attention bias of a batch (`conf/model/bias/`)."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The bias of one batch; `num_heads` is H."""
        ...


class Backend(ABC):
    """Computes attention by one implementation (`conf/model/attn/`).

    For every bias, each backend of the package is tested against `AttnBias.materialize` in float64,
    or lists the reasons why it cannot run.

    Attributes:
        name: name of the option.
        rank: order of preference: `auto` and error messages list backends of lower rank first.
        needs_compilation: whether timing requires compilation, so that `auto` skips the backend.
        takes_scale: whether it multiplies q k^T by `AttnCall.scale`; if not, a bias with a scale of
            its own is refused.
        takes_softcap: whether it applies `AttnBias.softcap`; if not, such a bias is refused.
        smaller_option: the option of its group that needs less memory, suggested if memory runs
            out.
        no_cuda_graph: why it cannot be captured in a CUDA graph, and what to use; None if it can.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 50
    needs_compilation: ClassVar[bool] = False
    takes_scale: ClassVar[bool] = False
    takes_softcap: ClassVar[bool] = False
    smaller_option: ClassVar[str | None] = None
    no_cuda_graph: ClassVar[str | None] = None

    @abstractmethod
    def reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """Reasons why its kernel cannot run a call; empty means that it can.

        `unsupported_reasons` checks beforehand, for every backend, whether the bias fits the batch,
        and whether the class declares that it takes a scale or a soft cap.

        Args:
            call: the attention call.
            needs_grad: whether the backward pass runs too.
        """

    @abstractmethod
    def handle_for(self, call: AttnCall) -> Any:
        """The kernel's own form of the bias, made once per batch, outside compiled code."""

    @abstractmethod
    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: Any) -> Tensor:
        """Attention output [B, M, H, K], in the dtype of q, for the call of the handle."""

    @abstractmethod
    def kernel_for(self, call: AttnCall) -> str:
        """The name of the kernel that runs, for logs, TensorBoard and benchmark rows."""

    def too_slow_to_time(self, call: AttnCall) -> list[str]:
        """Reasons why `auto` does not time this backend at these sizes; empty means it does."""
        return []

    def packs_at_full_speed(self, device: torch.device) -> bool:
        """Whether packed rows are as fast as plain rows, so that `data.packing=null` is true."""
        return False

    def stand_in(self, call: AttnCall) -> Attention | None:
        """Attention that saves the tensors that this backend saves for its backward pass.

        The memory prediction calls it with fake tensors, which have sizes and no memory, and reads
        the autograd graph of the result. If None, the prediction makes a handle and runs the
        backend itself on fake tensors, which works for plain PyTorch code; if it fails, the
        predicted peak is unknown.
        """
        return None

    def transient_bytes(self, call: AttnCall) -> int | None:
        """Temporary bytes of the backward pass, beside the gradient of the largest saved tensor.

        If None, the memory prediction measures them by running the backend forward and backward on
        fake tensors; if that fails, it assumes another tensor of that size. The log says so.
        """
        return None

    def flops_per_token(self, call: AttnCall) -> float | None:
        """FLOPs of forward and backward per token of one layer, for the MFU.

        They are a mean over the tokens of the batch, beside those of the projections. If None, they
        are 12 H K times the mean number of keys: the document's length, or the window.
        """
        return None

    def unsupported_reasons(self, call: AttnCall, *, needs_grad: bool = True) -> list[str]:
        """Reasons why the call cannot run; empty means that it runs, forward and backward."""
        if found := [*call.bias.misfits(call.shape), *self._score_reasons(call.bias)]:
            return found
        found = self.reasons(call, needs_grad=needs_grad)
        return checked_reasons(self, "reasons", found)

    def prepare_handle(self, call: AttnCall) -> Any:
        """The handle of an attention call.

        Raises:
            ConfigError: the bias does not fit the batch, or the backend does not take its scale or
                cap.
        """
        call.bias.check_fits(call.shape)
        if found := self._score_reasons(call.bias):
            raise ConfigError(f"model.attn cannot compute model.bias: {'; '.join(found)}.")
        return self.handle_for(call)

    def kernel_name(self, call: AttnCall) -> str:
        """The name of the kernel that runs an attention call."""
        found = self.kernel_for(call)
        if not isinstance(found, str):
            raise ConfigError(
                f"model.attn: {type(self).__qualname__}.kernel_for must return the kernel's name, "
                f"got {describe_value(found)}."
            )
        return found

    def unsupported(
        self,
        bias: AttnBias,
        shape: AttnShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        needs_grad: bool = True,
    ) -> list[str]:
        """`unsupported_reasons` with four arguments, for programs of earlier versions."""
        call = AttnCall(bias, shape, dtype, device)
        return self.unsupported_reasons(call, needs_grad=needs_grad)

    def prepare(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """`prepare_handle` with four arguments, for programs of earlier versions."""
        return self.prepare_handle(AttnCall(bias, shape, dtype, device))

    def kernel(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> str:
        """`kernel_name` with four arguments, for programs of earlier versions."""
        return self.kernel_name(AttnCall(bias, shape, dtype, device))

    def _score_reasons(self, bias: AttnBias) -> list[str]:
        found = []
        if bias.scale is not None and not self.takes_scale:
            found.append(
                f"it scales scores by K**-0.5 only, and the bias sets scale={bias.scale:g}"
            )
        if bias.softcap is not None and not self.takes_softcap:
            found.append(f"it cannot cap scores, and the bias sets softcap={bias.softcap:g}")
        return found


class ChoosingBackend(Backend):
    """Computes attention by one of the other backends, which it chooses (`model.attn=auto`).

    Attributes:
        chosen: the backend that computes attention; None before the choice.
    """

    chosen: Backend | None

    @abstractmethod
    def choose(self, cases: Sequence[AttnCase]) -> None:
        """Chooses a backend for the distinct attention calls of a model."""

    @abstractmethod
    def choose_by_name(self, name: str) -> None:
        """Chooses a backend by name, such as the choice of rank 0."""

    @abstractmethod
    def reuse_choice(self, name: str, cases: Sequence[AttnCase]) -> list[str]:
        """Repeats the choice of a resumed run.

        Returns:
            Reasons why that backend cannot run here; empty if it was chosen.
        """


def checked_reasons(part: object, method: str, found: Any) -> list[str]:
    """Checks the reasons that a user's class returned for why it cannot run; None means none.

    Raises:
        ConfigError: they are not a list of strings.
    """
    if found is None:
        return []
    if not isinstance(found, list | tuple) or not all(isinstance(reason, str) for reason in found):
        raise ConfigError(
            f"{type(part).__qualname__}.{method} must return a list of reasons, empty where it "
            f"runs, got {describe_value(found)}."
        )
    return list(found)


class PositionEncoding(Protocol):
    """Encodes positions (`conf/model/pos/`).

    The class constant `changes_embeddings = True` declares that `embed` changes the embeddings.
    Such an encoding can only be used for the whole model, not for single layers.

    Attributes:
        max_positions: maximum length of a document; None is no limit.
    """

    max_positions: int | None

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """The input of the first layer, from token embeddings."""
        ...

    def prepare(self, positions_1M: Tensor) -> Any:
        """The argument `prepared` of `apply_to`, computed once per batch."""
        ...

    def apply_to(self, q_BMHK: Tensor, k_BMGK: Tensor, prepared: Any) -> tuple[Tensor, Tensor]:
        """The queries and keys of a layer with their positions encoded."""
        ...


class Heads(Protocol):
    """Projects the residual stream to queries, keys and values (`conf/model/heads/`).

    Constructor: `(dim, num_heads, linear_bias, *, <options>)`; a `torch.nn.Module`.

    Attributes:
        num_kv_heads: G; H is a multiple of it.
    """

    num_kv_heads: int

    def __call__(self, x_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The q_BMHK, k_BMGK and v_BMGK of the normalized residual stream."""
        ...


class FeedForward(Protocol):
    """The feed-forward of a layer (`conf/model/ffn/`).

    Constructor: `(dim, linear_bias, *, <options>)`; a `torch.nn.Module`. Optional attributes:

    - `unsupported(device) -> list[str]`: the reasons why it cannot run on the device.
    - `stand_in()`: a module with the same weights for the memory prediction, if this one cannot run
      on fake tensors.
    - `active_parameters() -> int`: the number of parameters that one token is multiplied with, for
      the FLOPs of a step and the MFU, if it is not that of all parameters. A mixture of experts
      counts its router and the experts that a token is routed to. Norms, heads and submodules may
      have it too.
    - `no_cuda_graph: str | None`: why it cannot be captured in a CUDA graph, and what to use.
      Norms, heads and position encodings may have it too.
    """

    def __call__(self, x_BMD: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Maps [B, M, D] to [B, M, D], which is added to the residual stream.

        A feed-forward with an auxiliary loss, such as the load balancing of a mixture of experts,
        returns a pair: the output and the loss, a scalar. The loss is a mean over the tokens of
        `x_BMD`, already multiplied by its weight. Training minimizes the mean cross-entropy plus
        the auxiliary losses of all layers; micro-batches of a step, on all ranks, are weighted by
        their number of labels. The sum is recorded as `train/aux_loss`; validation does not include
        it.
        """
        ...


class Norm(Protocol):
    """Normalizes each position (`conf/model/norm/`).

    Constructor: `(dim, linear_bias, *, <options>)`; a `torch.nn.Module`.
    """

    def __call__(self, x_BMD: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]."""
        ...

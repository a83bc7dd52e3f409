"""The page to read first: shape letters, what a batch is, what a bias is, what a backend does.

Shape letters, one legend for the whole package, following xFormers. Tensors that cross a function
border carry them as a suffix: `q_BMHK`, `k_BMGK`.

    B  batch            M  sequence positions      D  model width
    H  query heads      G  key/value heads (H is a multiple of G)
    K  head width       V  vocabulary

Data flows one way, once a batch:

    Batch -> bias recipe -> AttnBias (facts) -> backend.prepare -> handle (a kernel's own form)

and then through every block: `backend(q_BMHK, k_BMGK, v_BMGK, handle) -> out_BMHK`. N recipes and
M backends meet in `AttnBias` alone, so a new bias edits no backend and a new backend no bias.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from xftrain.batch_checks import bias_misfits, check_batch, check_bias, document_reasons
from xftrain.errors import ConfigError
from xftrain.transfer import on_device

IGNORED_LABEL = -100
Split = Literal["train", "val"]
# (q_BMHK, k_BMGK, v_BMGK, handle) -> out_BMHK
Attention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


@dataclass(eq=False)  # not frozen: Lightning's bf16-true copies a batch field by field
class Batch:
    """One step's tokens.

    Attributes:
        tokens_BM: int64 token ids.
        labels_BM: int64 next tokens; `IGNORED_LABEL` where there is none. In a packed row they
            never cross a document.
        positions_1M: int64 positions, the same for every row; they restart at 0 in every packed
            document.
        seqlens: lengths of the documents packed into the one row (they sum to M), as host
            integers so that reading them never waits for the device; None where rows are not
            packed. Packed implies B = 1.
    """

    tokens_BM: Tensor
    labels_BM: Tensor
    positions_1M: Tensor
    seqlens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_batch(self.tokens_BM, self.labels_BM, self.positions_1M, self.seqlens)

    @property
    def shape_BM(self) -> tuple[int, int]:
        """Rows and positions."""
        return self.tokens_BM.shape[0], self.tokens_BM.shape[1]

    @property
    def num_tokens(self) -> int:
        """B x M."""
        return self.tokens_BM.numel()

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The same batch on another device; Lightning calls this."""
        return replace(
            self,
            tokens_BM=self.tokens_BM.to(*args, **kwargs),
            labels_BM=self.labels_BM.to(*args, **kwargs),
            positions_1M=self.positions_1M.to(*args, **kwargs),
        )

    def copy_(self, other: Batch) -> None:
        """Takes the numbers of a batch of this shape, without waiting for them."""
        self.tokens_BM.copy_(other.tokens_BM, non_blocking=True)
        self.labels_BM.copy_(other.labels_BM, non_blocking=True)
        self.positions_1M.copy_(other.positions_1M, non_blocking=True)

    def pinned(self) -> Batch:
        """The same batch in pinned memory: from other memory, `to` a GPU waits for its work."""
        if self.tokens_BM.device.type != "cpu":
            return self
        return replace(
            self,
            tokens_BM=self.tokens_BM.pin_memory(),
            labels_BM=self.labels_BM.pin_memory(),
            positions_1M=self.positions_1M.pin_memory(),
        )


def positions_of(num_positions: int, seqlens: tuple[int, ...] | None) -> Tensor:
    """int64 positions [1, M] that restart at 0 in every packed document."""
    lengths = (num_positions,) if seqlens is None else seqlens
    return torch.cat([torch.arange(n) for n in lengths])[None]


@dataclass(frozen=True)
class AttnShape:
    """The sizes of one attention call; see the legend."""

    B: int
    M: int
    H: int
    G: int
    K: int

    @property
    def scale(self) -> float:
        return self.K**-0.5


@dataclass(frozen=True, eq=False)
class AttnBias:
    """What a query may see and what is added to its scores, as plain facts.

    Attributes:
        causal: a query sees no later key.
        window: number of keys a query sees, itself included (causal only); None is unlimited.
        seqlens: document lengths of a packed row; a query sees its own document only.
        slopes: ALiBi slopes, one per query head: `slope * (j - i)` is added (causal only).
        dense: hand the kernel all of this as one tensor instead of its implicit form.
        additive_HMM: any further additive term, [H or 1, M, M]; -inf hides a key.
    """

    causal: bool = True
    window: int | None = None
    seqlens: tuple[int, ...] | None = None
    slopes: tuple[float, ...] | None = None
    dense: bool = False
    additive_HMM: Tensor | None = None

    def __post_init__(self) -> None:
        check_bias(self.causal, self.window, self.slopes, self.additive_HMM)

    def misfits(self, shape: AttnShape) -> list[str]:
        """Reasons why these facts do not belong to such a batch; empty where they do."""
        return [
            *document_reasons(self.seqlens, shape.B, shape.M),
            *bias_misfits(self.slopes, self.additive_HMM, shape.H, shape.M),
        ]

    def check_fits(self, shape: AttnShape) -> None:
        """Refuses facts that do not belong to such a batch.

        Raises:
            ConfigError: the reasons of `misfits`.
        """
        if reasons := self.misfits(shape):
            raise ConfigError(f"model.bias does not fit the batch: {'; '.join(reasons)}.")

    @property
    def key(self) -> tuple[Any, ...] | None:
        """Equal for equal facts, so that a handle may be used again; None where it may not."""
        if self.additive_HMM is not None:
            return None
        return (self.causal, self.window, self.seqlens, self.slopes, self.dense)

    def segments(self, num_positions: int) -> list[tuple[int, int]]:
        """Half-open ranges of the documents in a row."""
        ends = list(accumulate(self.seqlens or (num_positions,)))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def documents_M(self, num_positions: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """The first and the last position of each position's document, int64 [M] each."""
        lengths = on_device(self.seqlens or (num_positions,), device)
        ends = lengths.cumsum(0)
        first_M, last_M = (
            torch.repeat_interleave(bound, lengths, output_size=num_positions)
            for bound in (ends - lengths, ends - 1)
        )
        return first_M, last_M

    def simplified(self, num_positions: int) -> AttnBias:
        """The same meaning at this length with fewer facts: a window that hides nothing goes."""
        longest = max(self.seqlens or (num_positions,))
        if self.window is not None and self.window >= longest:
            return replace(self, window=None)
        return self

    def visible_MM(
        self, num_positions: int, device: torch.device | str = "cpu", first_query: int = 0
    ) -> Tensor:
        """bool [M, M], true where query i (row) may see key j (column).

        With `first_query` n, the rows of the queries n, n+1, ... only.
        """
        j = torch.arange(num_positions, device=device)
        ahead = j[first_query:, None] - j[None, :]
        visible = ahead >= 0 if self.causal else torch.ones_like(ahead, dtype=torch.bool)
        if self.window is not None:
            visible &= ahead < self.window
        if self.seqlens is not None:
            lengths = on_device(self.seqlens, device)
            ids = torch.arange(len(self.seqlens), device=device)
            document = torch.repeat_interleave(ids, lengths, output_size=num_positions)
            visible &= document[first_query:, None] == document[None, :]
        return visible

    def materialize(
        self,
        num_positions: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        first_query: int = 0,
    ) -> Tensor:
        """What this bias means: the term added to the scores, [H or 1, M, M], -inf where hidden.

        Slow and memory-hungry on purpose. It is the specification that every backend is tested
        against: `softmax(q k^T * scale + materialize()) v`, where a query that sees nothing gets 0.
        With `first_query` n, the rows of the queries n, n+1, ... only.
        """
        visible_MM = self.visible_MM(num_positions, device, first_query)
        bias = torch.zeros(1, *visible_MM.shape, dtype=dtype, device=device)
        if self.slopes is not None:
            j = torch.arange(num_positions, device=device, dtype=dtype)
            slopes_H = on_device(self.slopes, device, dtype)
            bias = slopes_H[:, None, None] * (j[None, :] - j[first_query:, None])
        if self.additive_HMM is not None:
            bias = bias + self.additive_HMM[:, first_query:].to(device=device, dtype=dtype)
        return bias.masked_fill(~visible_MM, float("-inf"))


class AttnCase(NamedTuple):
    """The attention that some layers of a model have in common for a batch.

    Attributes:
        bias: what a query may see.
        shape: the sizes of one call.
        layers: the indices of the layers, from 0.
    """

    bias: AttnBias
    shape: AttnShape
    layers: tuple[int, ...]


def layers_in_words(layers: Sequence[int]) -> str:
    """Indices from 0 as `layer 0` or `layers 0-4, 6`."""
    runs: list[list[int]] = []
    for index in layers:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    said = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(said)}"


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

    def __call__(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] to [B, M, D], which is added to the residual stream."""
        ...


class Norm(Protocol):
    """Normalizes each position (`conf/model/norm/`).

    Constructor: `(dim, linear_bias, *, <options>)`; a `torch.nn.Module`.
    """

    def __call__(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] to [B, M, D]."""
        ...


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
        smaller_option: the option of its group that needs less memory, named where memory runs out.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 50
    needs_compilation: ClassVar[bool] = False
    smaller_option: ClassVar[str | None] = None

    @abstractmethod
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

    @abstractmethod
    def prepare(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """The kernel's own form of the bias. Once a batch, outside any compiled region."""

    @abstractmethod
    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: Any) -> Tensor:
        """Attention, scaled by K**-0.5: [B, M, H, K] in the dtype of q."""

    @abstractmethod
    def kernel(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> str:
        """The name of the kernel that really runs, for logs, TensorBoard and benchmark rows."""

    def too_slow_to_time(self, shape: AttnShape) -> list[str]:
        """Reasons why `auto` does not time this backend at such sizes; empty means it does."""
        return []

    def stand_in(
        self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
    ) -> Attention | None:
        """Attention that saves the tensors that this backend saves for its backward pass.

        The memory prediction calls it with fake tensors, which have sizes and no memory, and reads
        the autograd graph of the result. None has it run `prepare` and the backend itself on fake
        tensors, which plain PyTorch code can; where that fails, the peak is called unknown.
        """
        return None

    def transient_bytes(self, bias: AttnBias, shape: AttnShape, dtype: torch.dtype) -> int:
        """Bytes that its backward pass needs for a moment beside the gradient of one tensor."""
        return 0


class LossSums(NamedTuple):
    """What a loss returns: sums, so that parts add up exactly whatever their sizes.

    Attributes:
        loss: summed cross-entropy in nats.
        num_labels: how many labels it was summed over.
        num_correct: how many were guessed right; None where it was not asked for.
    """

    loss: Tensor
    num_labels: Tensor
    num_correct: Tensor | None

    def stacked(self) -> Tensor:
        """The three as float64 [3], where `num_correct` was asked for."""
        if self.num_correct is None:
            raise ConfigError(
                "a loss that is called with with_accuracy=True must return the number of correct "
                "guesses, got num_correct=None."
            )
        return torch.stack([one.double() for one in (self.loss, self.num_labels, self.num_correct)])


class Loss(Protocol):
    """Cross-entropy of the next token, from hidden states (`conf/loss/`).

    A loss may have more, and all of its own package have:

    - `peak_bytes(num_tokens, weight_VD, dtype, device) -> int`: the most memory that it needs at
      once beside its inputs, in bytes, the gradients that its forward pass makes included; `dtype`
      is that of the matmuls. Without it, the loss is taken to hold the whole logits.
    - `choice(num_tokens, vocab_size, device) -> Loss`: the loss that runs such a batch, where this
      one only chooses.
    - `smaller_option: str | None`: the option of this group that needs less memory.
    - `no_cuda_graph: str | None`: why it cannot be recorded in a CUDA graph, and what to use.
    """

    def unsupported(self, device: torch.device) -> list[str]:
        """Reasons why this cannot run on the device; empty means that it runs."""
        ...

    def __call__(
        self, x_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, with_accuracy: bool
    ) -> LossSums:
        """Sums over the N tokens whose label is not `IGNORED_LABEL`.

        Args:
            x_ND: last hidden states, normalized.
            weight_VD: the output matrix.
            labels_N: int64 labels.
            with_accuracy: also count correct guesses, which reads the logits once more.
        """
        ...


class Vocabulary(Protocol):
    """What tokens stand for, apart from the data; a checkpoint needs no more to be sampled from.

    Those of `xftrain/data/vocabulary.py` and `tokenizer.py` are rebuilt from a checkpoint by their
    `kind`. One of your own trains and is compared on resume, but cannot be sampled from.

    Attributes:
        kind: `integers`, `bytes` or `bpe`.
        vocab_size: V; every token is below it.
    """

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt.

        Raises:
            ConfigError: the text cannot be written in this vocabulary.
        """
        ...

    def decode(self, tokens: list[int]) -> str:
        """Tokens as text for a person."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content: equal for equal meanings of all tokens, on any machine."""
        ...


class Schedule(Protocol):
    """Learning rates, as a pure function of the step (`conf/schedule/`).

    It has no state: a checkpoint holds the number of steps alone.
    """

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate of the step after `step` steps, as a share of the base learning rate.

        Args:
            step: number of optimizer steps before it, from 0.
            max_steps: of the run.

        Returns:
            A finite number >= 0.
        """
        ...


class Optimizer(Protocol):
    """Builds the optimizer, with the schedule applied to it (`conf/optim/`).

    An option may have more, and all of the package have:

    - `state_bytes(parameter) -> int`: what the optimizer keeps of a parameter. Without it, the
      state is taken to be as large as AdamW's.
    - `option_by_parameter(model) -> dict`: the option that steps each parameter, whose
      `state_bytes` is asked, where several optimizers share them.
    - `takes_bf16_gradients(device) -> bool`: its step reads bfloat16 gradients of float32 weights.
    - `modifies_weights: bool`: whether anything but its step changes weights or reads gradients
      before they are complete; true where it is not said.
    - `no_cuda_graph: str | None`: why its step cannot be recorded in a CUDA graph, and what to use.
    """

    def build(
        self, model: nn.Module, schedule: Schedule, max_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimizer, and a learning rate scheduler that is stepped once an optimizer step.

        Args:
            model: whose parameters are trained.
            schedule: what the learning rate scheduler applies to each group's base learning rate.
            max_steps: of the run, which the schedule gets.

        Returns:
            The optimizer, whose groups may have a `name`: then their learning rates are logged as
            `optim/lr/<name>`, beside that of the first group, `optim/lr`.
        """
        ...

    def update_saved(
        self,
        saved_optimizer: dict[str, Any],
        saved_lr_scheduler: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Puts today's settings into the saved state of a run that resumes, group by group.

        Without it torch restores the settings of the checkpoint, whatever the configuration says.

        Args:
            saved_optimizer: what `state_dict` of the optimizer returned, changed in place.
            saved_lr_scheduler: what `state_dict` of its scheduler returned, changed in place.
            optimizer: what `build` has returned in this run, with as many groups.
            lr_scheduler: the same.
        """
        ...


class DataSource(Protocol):
    """Where batches come from (`conf/data/`).

    Every batch is a pure function of (seed, split, step, rank): nothing to save, nothing to lose.
    Constructor: `(seq, batch_size, seed, world_size, *, <options>)`.

    A class of your own may leave out `vocabulary` and `digest`. Then its checkpoints cannot be
    sampled from, and a resumed run cannot tell whether its data has changed.

    Attributes:
        vocab_size: V; every token is below it.
        vocabulary: what the tokens stand for.
        num_val_batches: how many validation batches there are.
        stop_at_accuracy: validation accuracy at which the task counts as solved, or None.
    """

    vocab_size: int
    vocabulary: Vocabulary
    num_val_batches: int
    stop_at_accuracy: float | None

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        """The batch of one micro-step, on the CPU."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Tokens as text for a person."""
        ...

    def digest(self) -> str:
        """SHA-256 of all content that batches are made of, but for seed, sizes and ranks.

        A resumed run compares it: another place or another time of the same content does not
        change it, one other byte does.
        """
        ...

    def num_label_bytes(self, labels_BM: Tensor) -> int | None:
        """Bytes of text that the labels stand for; None where the data is not text."""
        ...

    def baseline(self) -> dict[str, float]:
        """Figures of a trivial model on the validation batches, by metric name; may be empty."""
        ...

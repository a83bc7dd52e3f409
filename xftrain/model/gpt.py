"""The GPT: a pre-norm decoder assembled from the chosen variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xftrain.config.run_config import GPTConfig
from xftrain.errors import ConfigError
from xftrain.interfaces import Attention, AttnCase, AttnShape, Backend, positions_of
from xftrain.interfaces.batch_checks import check_documents
from xftrain.kernels.operators import MATMULS
from xftrain.kernels.softcap import softcapped
from xftrain.model.block import Block, RecomputePlan
from xftrain.model.initialization import init_table, initialize
from xftrain.model.layer_spec import LayerSpec, built_bias, distinct_cases
from xftrain.model.length import refuse_length, smallest_limit
from xftrain.model.linear import Linear
from xftrain.model.tied import MayTieHead
from xftrain.utils.compilation import configure_compilation, uncompiled


class GPT(MayTieHead):
    """Token and position embeddings, blocks, a final norm, and an output matrix.

    The state dict does not depend on the backend, on `bias.impl` or on `ffn.impl`.

    Args:
        backend: computes attention.
        layers: specs of the first layers; the list repeats over the depth. Equal parts are the same
            object.
        make_pos: (D, K) -> position encoding of the layers whose spec has none.
        make_norm: (D, linear_bias) -> normalization.
        config: sizes and settings; for `activation_checkpointing=auto`, the run sets
            `recompute_plan` later.
        vocab_size: V.
    """

    def __init__(
        self,
        backend: Backend,
        layers: Sequence[LayerSpec],
        make_pos: Callable[..., Any],
        make_norm: Callable[..., nn.Module],
        config: GPTConfig,
        vocab_size: int,
    ) -> None:
        super().__init__()
        dim, num_layers, num_heads = config.dim, config.num_layers, config.num_heads
        linear_bias = config.linear_bias
        self.backend = backend
        self.specs = [layers[index % len(layers)] for index in range(num_layers)]
        self.attention: Attention = backend
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.recompute_plan = RecomputePlan()
        if config.activation_checkpointing == "ffn":
            self.recompute_plan = RecomputePlan(ffns=num_layers)
        elif config.activation_checkpointing:  # all blocks, until a run sets its plan
            self.recompute_plan = RecomputePlan(blocks=num_layers)
        self.residual_dtype = config.residual_dtype
        self.activation_budget, self.logit_softcap = config.activation_budget, config.logit_softcap
        self.embed = nn.Embedding(vocab_size, dim)
        self.norm_embed = make_norm(dim, linear_bias) if config.norm_embedding else None
        self.pos = make_pos(dim, self.head_dim)
        own = dict.fromkeys(spec.make_pos for spec in self.specs if spec.make_pos is not None)
        positions = {make: make(dim, self.head_dim) for make in own}
        # a configuration of built-in options has been refused already
        for pos in positions.values():
            if getattr(pos, "changes_embeddings", False):
                raise ConfigError(
                    f"model.layers gives layers the position encoding {type(pos).__name__}, which "
                    "adds to the embeddings before the first layer: set it as model.pos."
                )
        self.blocks = nn.ModuleList(
            Block(
                spec.make_heads(dim, num_heads, linear_bias),
                spec.make_ffn(dim, linear_bias),
                (make_norm(dim, linear_bias), make_norm(dim, linear_bias)),
                self.pos if spec.make_pos is None else positions[spec.make_pos],
                dim=dim,
                linear_bias=linear_bias,
                dropout=config.dropout,
                qk_norm_dim=self.head_dim if config.qk_norm else None,
            )
            for spec in self.specs
        )
        self.layer_pos = nn.ModuleList(positions.values())
        makes = list(positions)
        self._pos_of_layer = [
            None if spec.make_pos is None else makes.index(spec.make_pos) for spec in self.specs
        ]
        self.norm = make_norm(dim, linear_bias)
        self.head = Linear(dim, vocab_size, bias=False)
        if config.tie_embeddings:
            self.tie_head()
        residual, head = config.init_residual, config.init_head
        table = init_table(config.init_std, num_layers, residual=residual, head=head)
        self.uninitialized = initialize(self, table)
        self._handles: dict[Any, Any] = {}  # handles of the last batch, by the key of the bias

    @property
    def windows(self) -> list[int | None]:
        """The maximum number of keys that a query sees in each layer; None is no limit."""
        return [built_bias(spec.bias, self.num_heads, None).window for spec in self.specs]

    def position_encoding(self, layer: int) -> Any:
        """The position encoding of a layer."""
        index = self._pos_of_layer[layer]
        return self.pos if index is None else self.layer_pos[index]

    @property
    def max_positions(self) -> int | None:
        """The maximum length of a document, over all position encodings; None is no limit."""
        return smallest_limit((self.pos, *self.layer_pos))

    def distinct_blocks(self) -> list[tuple[Block, tuple[int, ...]]]:
        """The first block of each kind, and the indices of all layers of that kind."""
        kinds: dict[tuple[int, ...], list[int]] = {}  # by identity: a recipe may have no hash
        for index, spec in enumerate(self.specs):
            kinds.setdefault(tuple(map(id, spec)), []).append(index)
        return [(self.blocks[layers[0]], tuple(layers)) for layers in kinds.values()]  # type: ignore[misc]

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.head.weight.shape[0]

    def attention_cases(
        self,
        num_rows: int,
        num_positions: int,
        seqlens: tuple[int, ...] | None,
        device_dtype: tuple[torch.device, torch.dtype] | None = None,
    ) -> list[AttnCase]:
        """The distinct attention calls for a batch of this shape, with their layers.

        Args:
            num_rows: B.
            num_positions: M.
            seqlens: lengths of documents packed into the one row.
            device_dtype: device and dtype of q, k and v; None is `compute_device_dtype`.

        Raises:
            ConfigError: the documents do not fill one row, or the bias does not fit the batch.
        """
        check_documents(seqlens, num_rows, num_positions)
        groups: list[int] = [block.heads.num_kv_heads for block in self.blocks]  # type: ignore[union-attr, misc]
        sizes = (num_rows, num_positions, self.num_heads)
        shapes = {G: AttnShape(*sizes, G, self.head_dim) for G in set(groups)}
        device_dtype = device_dtype or self.compute_device_dtype()
        return distinct_cases(self.specs, [shapes[G] for G in groups], seqlens, *device_dtype)

    def prepare(
        self, num_rows: int, num_positions: int, seqlens: tuple[int, ...] | None = None
    ) -> list[Any]:
        """The backend's handle of each layer, cached while batches have equal layouts."""
        cases = self.attention_cases(num_rows, num_positions, seqlens)
        self.check_length(max(seqlens or (num_positions,)))
        # a later backward pass would refuse tensors made in inference mode
        is_inference = torch.is_inference_mode_enabled()
        before, self._handles = self._handles, {}
        handles: list[Any] = [None] * len(self.blocks)
        for call, layers in cases:
            bias_key = call.bias.key
            key = None if bias_key is None else (bias_key, *call[1:], is_inference)
            if key is not None and key in before:
                handle = before[key]
            else:
                handle = self.backend.prepare_handle(call)
            if key is not None:
                self._handles[key] = handle
            for index in layers:
                handles[index] = handle
        return handles

    def compile_blocks(self, *, packed: bool) -> None:
        """Compiles each block in place, which does not change the state dict.

        Attention over packed documents is not compiled, since each batch has another layout and
        would cause a recompilation.
        """
        configure_compilation(self.activation_budget, MATMULS)
        for part in self._compiled_parts():
            part.compile()
        if packed:
            self.attention = torch.compiler.disable(self.backend)

    def _compiled_parts(self) -> list[nn.Module]:
        first = () if self.norm_embed is None else (self.norm_embed,)
        return [*first, *self.blocks, self.norm]

    def uncompiled(self) -> AbstractContextManager[None]:
        """Within this context, blocks run uncompiled, since compiled code calls no hooks."""
        return uncompiled(self._compiled_parts())

    def check_length(self, num_positions: int) -> None:
        """Raises ConfigError if a document is longer than the maximum of a position encoding."""
        of_layers = map(self.position_encoding, range(len(self.specs)))
        refuse_length(num_positions, self.pos, list(of_layers))

    def compute_device_dtype(self) -> tuple[torch.device, torch.dtype]:
        """The device and dtype of q, k and v, with autocast taken into account."""
        weight = self.head.weight
        if torch.is_autocast_enabled(weight.device.type):
            return weight.device, torch.get_autocast_dtype(weight.device.type)
        return weight.device, weight.dtype

    def hidden(
        self,
        tokens_BM: Tensor,
        positions_1M: Tensor,
        handles: Sequence[Any],
        attention: Attention | None = None,
    ) -> Tensor:
        """The normalized hidden states of the last layer [B, M, D], input of the output matrix.

        Args:
            tokens_BM: int64 tokens.
            positions_1M: int64 positions, the same for every row.
            handles: the result of `prepare`, one handle per layer.
            attention: computes attention instead of the backend, outside compiled code.
        """
        return self.hidden_and_aux(tokens_BM, positions_1M, handles, attention)[0]

    def hidden_and_aux(
        self,
        tokens_BM: Tensor,
        positions_1M: Tensor,
        handles: Sequence[Any],
        attention: Attention | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The result of `hidden`, and the sum of the auxiliary losses of all layers, or None."""
        eager = attention is not None
        attention = self.attention if attention is None else attention
        x_BMD = self.first_input(self.embed(tokens_BM), positions_1M, eager=eager)
        _, dtype = self.compute_device_dtype()
        if dtype == torch.bfloat16 and self.residual_dtype == "auto":
            x_BMD = x_BMD.to(dtype)  # not to float16, which overflows above 65,504
        positions = self.prepared_positions(positions_1M)
        aux: Tensor | None = None
        plan = self.recompute_plan if torch.is_grad_enabled() else RecomputePlan()
        for index, block in enumerate(self.blocks):
            inputs = (attention, handles[index], positions[index])
            if eager:
                out = block.forward(x_BMD, *inputs)
            elif index < plan.blocks:
                out = checkpoint(block, x_BMD, *inputs, use_reentrant=False)
            else:
                out = block(x_BMD, *inputs, index < plan.ffns)
            if isinstance(out, tuple):
                x_BMD, own = out
                wide = own.to(torch.promote_types(own.dtype, torch.float32))
                aux = wide if aux is None else aux + wide
            else:
                x_BMD = out
        return self.norm.forward(x_BMD) if eager else self.norm(x_BMD), aux

    def first_input(self, embedding_BMD: Tensor, positions_1M: Tensor, *, eager: bool) -> Tensor:
        """The input of the first layer; compiled code is not called if `eager`."""
        x_BMD: Tensor = self.pos.embed(embedding_BMD, positions_1M)
        if self.norm_embed is None:
            return x_BMD
        return self.norm_embed.forward(x_BMD) if eager else self.norm_embed(x_BMD)

    def prepared_positions(self, positions_1M: Tensor) -> list[Any]:
        """The prepared positions of each layer."""
        common = self.pos.prepare(positions_1M)
        own = [pos.prepare(positions_1M) for pos in self.layer_pos]  # type: ignore[operator]
        return [common if index is None else own[index] for index in self._pos_of_layer]

    def forward(self, tokens_BM: Tensor, seqlens: tuple[int, ...] | None = None) -> Tensor:
        """Computes the logits [B, M, V]; `seqlens` are the documents packed into the only row.

        Raises:
            ConfigError: there are no tokens, `seqlens` do not fill the one row, or a document is
                longer than the model has positions.
        """
        num_rows, num_positions = tokens_BM.shape
        check_documents(seqlens, num_rows, num_positions)
        positions_1M = positions_of(num_positions, seqlens).to(tokens_BM.device)
        handles = self.prepare(num_rows, num_positions, seqlens)
        return self.logits(self.hidden(tokens_BM, positions_1M, handles))

    def logits(self, x: Tensor) -> Tensor:
        """The logits [..., V] of hidden states that `hidden` returns, capped at `logit_softcap`."""
        logits = F.linear(x, self.head.weight)
        return logits if self.logit_softcap is None else softcapped(logits, self.logit_softcap)

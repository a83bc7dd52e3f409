"""Muon (Jordan et al., 2024): orthogonalized momentum for the matrices of the blocks.

https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from xftrain.config import registry
from xftrain.config.fields import (
    NonNegativeFloat,
    Option,
    ParamGroups,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from xftrain.config.optimizers import checked_others
from xftrain.config.option_checks import checked_option
from xftrain.errors import ConfigError
from xftrain.kernels.batched_muon import BatchedMuon, Ranks
from xftrain.optim._grouped import GroupedOptimizer
from xftrain.optim.adamw import AdamW
from xftrain.train.distributed import all_gather_rows, world_size

_OTHERS = {"name": "adamw", "lr": None, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}


class Muon(GroupedOptimizer):
    """Steps the matrices of the blocks by Muon, and all other parameters by `others`.

    A matrix is a parameter of two dimensions, and no embedding. Those that a layer stacks in one
    weight, such as those of queries, keys and values, are orthogonalized one by one. Muon keeps one
    number for each weight, where AdamW keeps two.

    Args:
        lr: base learning rate of the matrices of the blocks. An update has the root mean square
            `lr` x `update_rms`.
        momentum: decay of the mean of the gradients.
        nesterov: whether the last gradient is added to the mean once more.
        num_ns_steps: number of Newton-Schulz iterations.
        update_rms: root mean square of an update at a learning rate of 1. About 0.2 is that of
            AdamW, so that a learning rate and a weight decay found for it fit (Liu et al., 2025,
            Moonlight, arXiv:2502.16982); torch calls this `adjust_lr_fn="match_rms_adamw"`.
        weight_decay: weight decay of the matrices of the blocks.
        others: the option that steps the embeddings, the output matrix, norms and biases; null as
            its `lr` is that of the matrices.
        param_groups: settings of parameters by patterns of their names, see `GroupedOptimizer`.
    """

    modifies_weights = False
    only_hidden_matrices = True

    def __init__(
        self,
        *,
        lr: PositiveFloat = 1e-2,
        momentum: Probability = 0.95,
        nesterov: bool = True,
        num_ns_steps: PositiveInt = 5,
        update_rms: PositiveFloat = 0.2,
        weight_decay: NonNegativeFloat = 0.1,
        others: Option = _OTHERS,
        param_groups: ParamGroups = (),
    ) -> None:
        option = registry.build(checked_option("optim.others", checked_others("optim", others, lr)))
        if not isinstance(option, GroupedOptimizer) or option.others is not None:
            raise ConfigError(
                "optim.others must be an option of optim that derives from GroupedOptimizer and "
                f"steps parameters of any shape, got {type(option).__name__}."
            )
        super().__init__(lr, weight_decay, param_groups, option)
        self.settings: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "num_ns_steps": num_ns_steps,
            "update_rms": update_rms,
        }

    def make(self, groups: list[dict[str, Any]]) -> BatchedMuon:
        """Creates Muon for matrices, which the ranks of the run orthogonalize together."""
        ranks = Ranks()
        if world_size() > 1:
            ranks = Ranks(dist.get_rank(), world_size(), all_gather_rows)
        return BatchedMuon(groups, ranks=ranks, **self.settings)

    def takes_bf16_gradients(self, device: torch.device) -> bool:
        """Whether all steps on a device read bfloat16 gradients, as Muon and `FusedAdamW` do."""
        is_alone = all(option is self for option in self._steppers)
        return is_alone and isinstance(self.others, AdamW) and self.others.uses_fused_adamw(device)

    def state_bytes(self, parameter: torch.Tensor) -> int:
        """The bytes of the momentum, in the dtype of the parameter."""
        return parameter.numel() * parameter.element_size()

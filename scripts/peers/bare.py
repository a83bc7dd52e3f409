"""xftrain's own modules in a bare training loop, to measure the overhead of the framework.

Configuration, initial weights, batches, kernel, loss and compiled blocks are those of xftrain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peers.loop import PeerModel, run_config, train
from peers.setup import Setup
from xftrain.commands import builder
from xftrain.interfaces import positions_of
from xftrain.kernels.matmul import Autotuner, autotuner_set
from xftrain.model.backends import kernel_name
from xftrain.train.hardware import compute_dtype


def measure(setup: Setup) -> dict[str, Any]:
    """Returns the row of `bare`, `bare:<backend>` or `bare:<backend>:<overrides>`."""
    cfg = run_config(setup)
    data = builder.build_data(cfg)
    cross_entropy = builder.build_loss(cfg)
    model = builder.build_model(cfg, data).to(setup.device)
    sizes = (setup.sizes.rows, setup.sizes.seq)
    device_and_dtype = (torch.device(setup.device), compute_dtype(setup.precision))
    cases = model.attention_cases(*sizes, None, device_and_dtype)
    kernel = kernel_name(model.backend, cases)
    if setup.compile:
        model.compile_blocks(packed=False)
    positions_1M = positions_of(setup.sizes.seq, None).to(setup.device)

    def loss(tokens_BM: Tensor, labels_BM: Tensor) -> Tensor:
        x_BMD = model.hidden(tokens_BM, positions_1M, model.prepare(*sizes))
        sums = cross_entropy(
            x_BMD.flatten(0, 1), model.head.weight, labels_BM.flatten(), with_accuracy=False
        )
        return sums.loss / sums.num_labels

    peer = PeerModel(loss, model, model.head.weight, setup.sizes.form, kernel)
    with autotuner_set(Autotuner() if cfg.matmul == "auto" else None):
        return train(setup, peer, data)

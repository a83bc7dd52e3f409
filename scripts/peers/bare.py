"""xftrain's own modules in a bare loop: what is left when the framework is taken away.

The same configuration, initial weights, batches, kernel, loss and compiled blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peers.loop import Trained, options_of, train
from peers.setup import Setup
from xftrain.commands import builder
from xftrain.interfaces import positions_of
from xftrain.kernels.matmul import Autotuner, set_autotuner
from xftrain.model.backends import kernel_name
from xftrain.train.hardware import compute_dtype


def measure(setup: Setup) -> dict[str, Any]:
    """The row of `bare`, `bare:<backend>` or `bare:<backend>:<overrides>`."""
    options = options_of(setup)
    data = builder.build_data(options)
    cross_entropy = builder.build_loss(options)
    model = builder.build_model(options, data).to(setup.device)
    sizes = (setup.sizes.rows, setup.sizes.seq)
    place = (torch.device(setup.device), compute_dtype(setup.precision))
    cases = model.attention_cases(*sizes, None, place)
    kernel = kernel_name(model.backend, cases)
    set_autotuner(Autotuner() if options.matmul == "auto" else None)
    if setup.compile:
        model.compile_blocks(packed=False)
    positions_1M = positions_of(setup.sizes.seq, None).to(setup.device)

    def loss(tokens_BM: Tensor, labels_BM: Tensor) -> Tensor:
        x_BMD = model.hidden(tokens_BM, positions_1M, model.prepare(*sizes))
        sums = cross_entropy(
            x_BMD.flatten(0, 1), model.head.weight, labels_BM.flatten(), with_accuracy=False
        )
        return sums.loss / sums.num_labels

    trained = Trained(loss, model, model.head.weight, setup.sizes.form, kernel)
    return train(setup, trained, data)

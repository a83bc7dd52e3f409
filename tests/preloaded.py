"""What commands import, for the server that forks processes of them."""

import gc

gc.disable()

from importlib import import_module  # noqa: E402
from pkgutil import walk_packages  # noqa: E402

import pydantic.type_adapter  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401
import torch.utils.tensorboard.writer  # noqa: E402, F401
from hydra.core.plugins import Plugins  # noqa: E402

import tests.forked  # noqa: E402, F401
import tests.train.runs  # noqa: E402, F401
import xftrain.benchmark.doctor_command  # noqa: E402, F401
import xftrain.commands.train  # noqa: E402, F401
import xftrain.launch.cli  # noqa: E402, F401

HEAVY = "benchmark callbacks checkpoint commands data kernels logger loss memory model optim train"

Plugins.instance()
for package in HEAVY.split():
    name = f"xftrain.{package}"
    for module in walk_packages(import_module(name).__path__, f"{name}."):
        if "triton" not in module.name and module.name != "xftrain.loss.liger":
            import_module(module.name)

gc.freeze()
gc.enable()

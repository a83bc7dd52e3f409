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
import tests.training.runs  # noqa: E402, F401
import xftrain.benchmark.doctor_command  # noqa: E402, F401
import xftrain.cli  # noqa: E402, F401
import xftrain.runner  # noqa: E402, F401
from xftrain import attention, benchmark, data, layers, losses, training  # noqa: E402

Plugins.instance()
for package in (attention, benchmark, data, layers, losses, training):
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        if "triton" not in module.name and module.name != "xftrain.losses.liger":
            import_module(module.name)

gc.freeze()
gc.enable()

"""What a benchmark was measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

import xftrain

_PACKAGES = ("xformers", "triton", "liger-kernel", "lightning", "hydra-core")


def row_fields(device: torch.device) -> dict[str, str]:
    """What every row says of where it was measured."""
    return {"device": device_name(device), "torch": torch.__version__}


def describe(device: torch.device) -> dict[str, str]:
    """Versions, device and driver, by what they are called in a report."""
    found = {
        "date": datetime.now().strftime("%Y-%m-%d"),
        "device": device_name(device),
        "CPU": f"{_cpu_name()}, {_num_cores()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "xftrain": xftrain.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "GPU memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": str(properties.multi_processor_count),
            "driver": _driver(),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def command() -> str:
    """What was typed, as far as this process knows."""
    program = Path(sys.argv[0])
    name = "python -m xftrain" if program.name in ("__main__.py", "-m") else program.name
    return " ".join([name, *sys.argv[1:]])


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown (no nvidia-smi)"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    return answer.stdout.strip().partition("\n")[0] or "unknown (nvidia-smi says nothing)"

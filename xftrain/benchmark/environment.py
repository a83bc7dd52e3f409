"""The environment of a benchmark: device, driver, versions and command."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch

from xftrain.errors import ConfigError
from xftrain.train.hardware import device_name
from xftrain.utils.files import read_json, write_json
from xftrain.version import __version__, installed_version

FILE = "environment.json"
_PACKAGES = ("xformers", "triton", "liger-kernel", "lightning", "hydra-core")


def row_fields(device: torch.device) -> dict[str, str]:
    """The fields of every row that describe the environment."""
    return {
        "device": device_name(device),
        "host": _cpu_name(),
        "torch": torch.__version__,
        "xformers": installed_version("xformers"),
        "xftrain": __version__,
        "deterministic": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "date": datetime.now().strftime("%Y-%m-%d"),
    }


def describe(device: torch.device) -> dict[str, str]:
    """Versions, device and driver, by their labels in a report."""
    found = {
        "date": datetime.now().strftime("%Y-%m-%d"),
        "device": device_name(device),
        "CPU": f"{_cpu_name()}, {_num_cores()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "xftrain": __version__,
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
    return found | {package: installed_version(package) for package in _PACKAGES}


def write(run_dir: Path, device: torch.device) -> None:
    """Writes the environment and the command into the run folder, for the report."""
    found = describe(device) | {"command": command()}
    write_json(found, run_dir / FILE)


def read(run_dir: Path) -> dict[str, str]:
    """Reads the environment of a run folder.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    found = read_json(run_dir / FILE)
    if found is None or not {"device", "command"} <= found.keys():
        raise ConfigError(f"{run_dir / FILE} is missing or damaged: run the benchmark again.")
    return {name: str(value) for name, value in found.items()}


def command() -> str:
    """The command line of this process."""
    program = Path(sys.argv[0])
    name = "python -m xftrain" if program.name in ("__main__.py", "-m") else program.name
    return " ".join([name, *sys.argv[1:]])


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
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
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "unknown (nvidia-smi does not answer)"
    return answer.stdout.strip().partition("\n")[0] or "unknown (nvidia-smi says nothing)"

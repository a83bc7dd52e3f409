"""Measures one peer in this process: `python -m peers SETUP RESULT`.

SETUP is a `Setup` as JSON, and RESULT the JSON file to which the row is written. An exception
becomes a row as well; only a process that dies leaves no file.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from peers import MODULES
from peers.setup import Setup
from peers.stopwatch import say
from xftrain.benchmark.worker import outcome
from xftrain.utils.files import write_json
from xftrain.utils.processes import die_with_parent


def row_of(setup: Setup) -> dict[str, Any]:
    """Returns the measured row, or one with the reason why there are no figures."""
    try:
        row = import_module(f"peers.{MODULES[setup.kind]}").measure(setup)
    except ModuleNotFoundError as error:
        traceback.print_exc()
        return {"status": "missing", "reason": f"no module named {error.name}"}
    except Exception as error:
        traceback.print_exc()
        status, reason = outcome(error)
        return {"status": status, "reason": reason}
    return {"status": "ok", "reason": "", **row}


def main() -> int:
    die_with_parent(signal.SIGKILL)
    faulthandler.enable()  # shows where a segmentation fault occurred
    setup = Setup.from_dict(json.loads(sys.argv[1]))
    torch.set_float32_matmul_precision("high")  # TF32 for matmuls that autocast leaves in float32
    say(f"{setup.peer}: building")
    write_json(row_of(setup), Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

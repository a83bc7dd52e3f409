"""Trains one run in this process: `python -m learning SETUP RESULT`.

SETUP is a `Setup` as JSON, and RESULT the JSON file to which its curve is written.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from learning.setup import PLAIN, Setup
from xftrain.benchmark.worker import outcome
from xftrain.utils.files import write_json
from xftrain.utils.processes import die_with_parent


def row_of(setup: Setup) -> dict[str, Any]:
    """Returns the curve of a run, or the reason why there is none."""
    module = "plain" if setup.name == PLAIN else "framework"
    try:
        clock = import_module(f"learning.{module}").train(setup)
    except Exception as error:
        traceback.print_exc()
        status, reason = outcome(error)
        return {"status": status, "reason": reason}
    points = [list(point) for point in clock.points]
    return {"status": "ok", "reason": "", "points": points, "start_up_s": clock.start_up_s}


def main() -> int:
    die_with_parent(signal.SIGKILL)
    setup = Setup.from_dict(json.loads(sys.argv[1]))
    torch.set_float32_matmul_precision("high")  # TF32 for matmuls that autocast leaves in float32
    write_json(row_of(setup), Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

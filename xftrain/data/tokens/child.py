"""How the processes of a preparation are started, and how they are connected with their parent.

They are plain child processes rather than `multiprocessing`'s, which would import the main module
again, and which a daemonic process may not start. A request is pickled to standard input, which
only the parent writes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import IO

from xftrain.utils.processes import die_with_parent

_CODE = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


def command_of(module: str) -> list[str]:
    """The command that calls `main` of a module, which is searched for where this process does."""
    return [sys.executable, "-c", _CODE.format(path=sys.path, module=module)]


def reply_stream() -> IO[bytes]:
    """Binds this process to its parent, and returns the stream of pickled replies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    die_with_parent(signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    return replies

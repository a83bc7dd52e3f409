"""The cache folder of torch.compile: never a folder that another user can write to."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_VARIABLE, _TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def use_private_compile_cache() -> None:
    """Makes torch.compile cache its code in a folder that only this user can write to.

    torch's default is a folder with a predictable name in the temporary folder, which any user
    can make first, and torch unpickles its content. The default is kept if it is private, else
    replaced. A folder that TORCHINDUCTOR_CACHE_DIR names is the user's choice.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    default = Path(default_cache_dir())
    # torch sets the variable to its own folder when its compiler is imported
    if os.environ.get(_VARIABLE, str(default)) != str(default):
        return
    for folder in (default, *_private_candidates()):
        if _is_private(folder):
            break
    else:
        folder = Path(tempfile.mkdtemp(prefix="torchinductor_"))
    if folder != default:
        log.info(
            "other users can write to %s: torch.compile caches its code in %s instead.",
            *(default, folder),
        )
    os.environ[_VARIABLE] = str(folder)
    if Path(os.environ.get(_TRITON, "")).is_relative_to(default) and folder != default:
        del os.environ[_TRITON]  # torch has set it, and sets it again
    if folder != default:
        import torch._inductor.config

        # torch stores these in its default folder even if the variable is set
        torch._inductor.config.cpp_cache_precompile_headers = False


def _private_candidates() -> Iterator[Path]:
    for name, below in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        if os.path.isabs(os.environ.get(name, "")):
            yield Path(os.environ[name], below, "xftrain", "torchinductor")


def _is_private(folder: Path) -> bool:
    """Makes the folder, and returns whether only this user can write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_own and not status.st_mode & (stat.S_IWOTH | stat.S_IWGRP)

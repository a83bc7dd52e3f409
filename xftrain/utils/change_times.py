"""Decides whether a file's change time (ctime) proves that its content has not changed.

Size and modification time do not: `rsync -t`, `cp -p` and `tar` set an earlier modification time on
other text of the same size. The kernel sets the ctime at every write, and no program can set it;
but not every file system maintains a ctime.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

# Linux, statfs(2). Excluded: FUSE, SMB and FAT, which may show the modification time in its place,
# and tmpfs, which does not update it for a file that is changed through a memory map.
_FILE_SYSTEMS = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # XFS
    0x9123683E,  # Btrfs
    0xF2F52010,  # F2FS
    0x2FC12FC1,  # ZFS
    0x794C7630,  # overlayfs
    0x6969,  # NFS
    0x0BD00BD0,  # Lustre
    0x47504653,  # GPFS
    0x00C36400,  # Ceph
}
# A write soon after another one may leave the ctime unchanged: in the same tick of the clock, or
# through a memory map whose page the kernel has not written back yet, which takes up to 35 s.
_SETTLED_NS = 60 * 10**9


def has_change_times(descriptor: int) -> bool:
    """Whether the file system of an open file updates its ctime at every change."""
    if sys.platform != "linux":
        return False
    buffer = ctypes.create_string_buffer(512)  # struct statfs, which begins with the type
    if ctypes.CDLL(None).fstatfs(descriptor, buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF in _FILE_SYSTEMS


def is_settled(status: os.stat_result) -> bool:
    """Whether any change from now on will give the file another ctime."""
    return time.time_ns() - status.st_ctime_ns > _SETTLED_NS

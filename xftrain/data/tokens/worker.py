"""A process that tokenizes chunks for `pool`: it imports numpy and tokenizers, and not torch.

It reads a pickled tokenizer and then pickled requests from standard input, which only its parent
writes, and answers each with None or an exception. It ends when its parent does.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys

from xftrain.data.tokens.shards import write_shard
from xftrain.utils.processes import die_with_parent


def main() -> None:
    """Answers requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    die_with_parent(signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    tokenizer = pickle.load(sys.stdin.buffer)
    while True:
        try:
            path, chunk, digest = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        error: Exception | None = None
        try:
            write_shard(path, chunk, tokenizer, digest)
        except Exception as raised:
            error = raised
        del chunk
        pickle.dump(error, replies)
        replies.flush()

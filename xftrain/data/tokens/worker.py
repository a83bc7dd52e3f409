"""A process that tokenizes chunks for `pool`: it imports numpy and tokenizers, and not torch.

It reads a pickled tokenizer and then pickled requests from standard input, which only its parent
writes, and answers each with None or an exception. A thread reads the next request while a chunk is
tokenized. The process ends when its parent does.
"""

from __future__ import annotations

import pickle
import queue
import sys
import threading
from typing import Any

from xftrain.data.tokens.child import reply_stream
from xftrain.data.tokens.shards import write_shard


def _read(requests: queue.Queue[Any]) -> None:
    """Reads requests until standard input ends, and then None."""
    try:
        while True:
            requests.put(pickle.load(sys.stdin.buffer))
    except (EOFError, pickle.UnpicklingError):  # cut off by the end of the parent
        requests.put(None)


def main() -> None:
    """Answers requests until standard input ends."""
    replies = reply_stream()
    tokenizer = pickle.load(sys.stdin.buffer)
    requests: queue.Queue[Any] = queue.Queue(1)
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while (request := requests.get()) is not None:
        path, chunk, digest = request
        error: Exception | None = None
        try:
            write_shard(path, chunk, tokenizer, digest)
        except Exception as raised:
            error = raised
        del request, chunk
        pickle.dump(error, replies)
        replies.flush()

"""Files of every format and compression, with given documents."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

COMPRESS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    # two frames, as `cat` of two files makes them
    ".zst": lambda c: zstandard.compress(c[: len(c) // 2]) + zstandard.compress(c[len(c) // 2 :]),
}


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"meta": {"text": text}}) + "\n" for text in texts).encode()


def csv_rows(texts: list[str]) -> bytes:
    made = io.StringIO(newline="")
    rows = csv.writer(made)
    rows.writerows([["id", "meta.text"], *([n, text] for n, text in enumerate(texts))])
    return made.getvalue().encode()


def table(texts: list[str]) -> pa.Table:
    return pa.table({"id": list(range(len(texts))), "meta": [{"text": text} for text in texts]})


def parquet(texts: list[str]) -> bytes:
    made = io.BytesIO()
    pq.write_table(table(texts), made)
    return made.getvalue()


def arrow(texts: list[str], new=pa.ipc.new_file) -> bytes:
    made, whole = io.BytesIO(), table(texts)
    with new(made, whole.schema) as file:
        file.write_table(whole)
    return made.getvalue()


def arrow_stream(texts: list[str]) -> bytes:
    return arrow(texts, pa.ipc.new_stream)


MAKE = {
    "a.jsonl": jsonl,
    "a.json": jsonl,
    "a.csv": csv_rows,
    "a.parquet": parquet,
    "a.arrow": arrow,
    "stream.arrow": arrow_stream,
}

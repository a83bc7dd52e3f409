"""The texts that the commands of the pages read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.data.built_tokenizers import built_json
from tests.data.chats import message_records, write_lines


def write_corpora(folder: Path) -> None:
    """Makes the files that the pages name."""
    lines = [f"line {number} of a text\n" for number in range(4000)]
    (folder / "corpus" / "tables").mkdir(parents=True)
    for part in range(4):
        (folder / "corpus" / f"{part}.txt").write_text("".join(lines[part::4]))
    rows = [{"body": f"row {number} of a table, {'and more ' * 9}"} for number in range(100)]
    pq.write_table(pa.table({"meta": rows}), folder / "corpus" / "tables" / "part.parquet")
    records = "".join(json.dumps({"text": f"{line} is held out"}) + "\n" for line in lines[:99])
    (folder / "held_out.jsonl.zst").write_bytes(zstandard.compress(records.encode()))
    (folder / "notes.md").write_text("a note that is held out\n" * 99)
    write_lines(folder / "chats.jsonl", message_records(40))
    (folder / "models" / "gpt2").mkdir(parents=True)
    (folder / "models" / "gpt2" / "tokenizer.json").write_text(built_json("gpt2"))

"""Conversations for tests, and what they are as bytes with labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SEPARATOR = 256

Record = dict[str, Any]


def message_records(num: int) -> list[Record]:
    """Conversations of one to four answers, of which some end with the user."""
    records = []
    for number in range(num):
        turns = [{"role": "system", "content": "Be short." * (number % 3)}]
        for turn in range(1 + number % 4):
            turns.append({"role": "user", "content": f"{number}, {turn}?"})
            turns.append({"role": "assistant", "content": "naïve " * (1 + (number + turn) % 5)})
        records.append({"messages": turns[: len(turns) - (number % 7 == 6 and len(turns) > 3)]})
    return records


def completion_records(num: int) -> list[Record]:
    """Prompts with completions; the first prompt is empty."""
    return [{"prompt": f"{n} + 1 =" * (n > 0), "completion": f" {n + 1}."} for n in range(num)]


def write_lines(path: Path, records: list[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def tokens_of(record: Record) -> list[tuple[int, bool]]:
    """The bytes of a conversation with whether the model is to generate each, separators included.

    The last separator is that of the next conversation.
    """
    if "prompt" in record:
        parts = [(record["prompt"], False), (record["completion"], True)]
        made = [(byte, said) for text, said in parts for byte in text.encode()]
        return [(SEPARATOR, False), *made, (SEPARATOR, True)]
    made = [(SEPARATOR, False)]
    for message in record["messages"]:
        if message["content"]:
            is_answer = message["role"] == "assistant"
            made += [(byte, False) for byte in f"{message['role']}\n".encode()]
            made += [(byte, is_answer) for byte in message["content"].encode()]
            made.append((SEPARATOR, is_answer))
    return made

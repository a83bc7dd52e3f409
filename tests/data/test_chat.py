"""`data=chat`: rows of whole conversations, whose labels are the answers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.chats import completion_records, message_records, tokens_of, write_lines
from xftrain.data.chat import Chat
from xftrain.data.corpus.selection import Conversations
from xftrain.data.tokens.cache import find
from xftrain.data.tokens.sample import training_text
from xftrain.errors import ConfigError
from xftrain.interfaces import IGNORED_LABEL, Batch, Split

SEQ = 128
RECORDS = message_records(40) + completion_records(10)
Pairs = tuple[tuple[int, int], ...]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "corpus" / "a.jsonl", RECORDS)


def chat(
    path: Path, cache_dir: Path, *, batch_size: int = 1, ranks: int = 1, **options: Any
) -> Chat:
    seq = options.pop("seq", SEQ)
    where = {"path": str(path), "cache_dir": str(cache_dir), "num_val_batches": 99}
    return Chat(seq, batch_size, 0, ranks, **where, **options)


def expected(record: dict[str, Any], *, all_tokens: bool = False, seq: int = SEQ) -> Pairs:
    """The tokens of a conversation with their labels, up to the last label."""
    made = tokens_of(record)[: seq + 1]
    pairs = [
        (token, label if is_label or all_tokens else IGNORED_LABEL)
        for (token, _), (label, is_label) in zip(made, made[1:], strict=False)
    ]
    while pairs and pairs[-1][1] == IGNORED_LABEL:
        pairs.pop()
    return tuple(pairs)


def documents(batch: Batch) -> list[Pairs]:
    """The tokens of each document of a batch with their labels, up to the last label."""
    lengths = batch.seqlens or (batch.shape_BM[1],) * batch.shape_BM[0]
    found = []
    columns = [column.flatten().split(lengths) for column in (batch.tokens_BM, batch.labels_BM)]
    for tokens, labels in zip(*columns, strict=True):
        labelled = (labels != IGNORED_LABEL).nonzero().flatten().tolist()
        end = labelled[-1] + 1 if labelled else 0
        found.append(tuple(zip(tokens[:end].tolist(), labels[:end].tolist(), strict=True)))
    return [pairs for pairs in found if pairs]


def epoch(data: Chat, split: Split) -> list[Batch]:
    """The batches of one epoch, of one row each."""
    if split == "val":
        return [data.batch("val", step) for step in range(data.num_val_batches)]
    return [data.batch("train", step) for step in range(data._rows.train.num_tokens // SEQ)]


@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize("packing", [None, False, True, "best_fit"])
def test_an_epoch_has_each_conversation_once_with_its_answers_as_labels(
    path, cache_dir, packing, completion_only
):
    data = chat(path, cache_dir, packing=packing, completion_only=completion_only)
    wanted = sorted(expected(record, all_tokens=not completion_only) for record in RECORDS)
    found = []
    for split in ("train", "val"):
        for batch in epoch(data, split):
            assert batch.shape_BM == (1, SEQ)
            pairs = documents(batch)
            assert pairs and (packing or len(pairs) == 1)
            found += pairs
    assert sorted(found) == wanted
    assert data.baseline() == {} and data.facts()[0].train.num_documents > 30


def test_a_batch_is_the_rows_of_smaller_batches_and_of_ranks(path, cache_dir):
    for packing in (False, True):
        ones, twos = (
            chat(path, cache_dir, packing=packing, batch_size=1),
            chat(path, cache_dir, packing=packing, batch_size=2, ranks=2),
        )
        four = chat(path, cache_dir, packing=packing, batch_size=4)
        for step in range(9):  # more than an epoch
            whole = four.batch("train", step)
            for parts in (
                [ones.batch("train", 4 * step + n) for n in range(4)],
                [twos.batch("train", step, rank) for rank in (0, 1)],
            ):
                for name in ("tokens_BM", "labels_BM"):
                    rows = torch.cat([getattr(part, name).flatten() for part in parts])
                    assert torch.equal(rows, getattr(whole, name).flatten())
                if packing:
                    assert sum((part.seqlens for part in parts), ()) == whole.seqlens
                assert sum(part.num_padding for part in parts) == whole.num_padding


def test_bytes_are_those_of_the_text_and_label_bytes_those_of_the_answers(path, cache_dir):
    data = chat(path, cache_dir, packing=True)
    (facts,) = data.facts()
    assert facts.train.num_bytes + facts.val.num_bytes == sum(
        token < 256 for record in RECORDS for token, _ in tokens_of(record)
    )
    num_bytes = sum(
        data.num_label_bytes(batch.labels_BM)
        for split in ("train", "val")
        for batch in epoch(data, split)
    )
    assert num_bytes == sum(0 <= label < 256 for record in RECORDS for _, label in expected(record))


def test_every_format_has_the_same_tokens_and_each_role_counts(tmp_path, cache_dir):
    records = message_records(30)
    columns = {"id": list(range(30)), "messages": [r["messages"] for r in records]}
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows(
        [["messages", "id"], *([json.dumps(r["messages"]), n] for n, r in enumerate(records))]
    )
    table = io.BytesIO()
    pq.write_table(pa.table(columns), table)
    lines = "".join(json.dumps({**r, "id": n}) + "\n" for n, r in enumerate(records))
    contents = {
        "a.jsonl": lines.encode(),
        "a.jsonl.gz": gzip.compress(lines.encode()),
        "a.csv": rows.getvalue().encode(),
        "a.parquet": table.getvalue(),
    }
    digests = set()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        digests.add(chat(tmp_path / name, cache_dir).digest())
    assert len(digests) == 1
    for message, role in ((0, "developer"), (1, "assistant"), (2, "user")):
        (tmp_path / "other.jsonl").write_text(lines)
        changed = [json.loads(line) for line in lines.splitlines()]
        changed[1]["messages"][message]["role"] = role
        digests.add(chat(write_lines(tmp_path / "other.jsonl", changed), cache_dir).digest())
    assert len(digests) == 4


def test_an_empty_cell_of_messages_leaves_the_prompt_and_its_completion(tmp_path, cache_dir):
    rows = [f",question {number},answer {number}\n" for number in range(20)]
    (tmp_path / "a.csv").write_text("messages,prompt,completion\n" + "".join(rows))
    (facts,) = chat(tmp_path / "a.csv", cache_dir).facts()
    assert facts.train.num_documents + facts.val.num_documents == 20


def test_other_keys_are_read_and_told_when_no_record_has_them(tmp_path, cache_dir):
    records = [
        {"chat": {"turns": r["messages"]}} if "messages" in r else {"q": r["prompt"], "a": "yes"}
        for r in RECORDS
    ]
    path = write_lines(tmp_path / "corpus" / "a.jsonl", records)
    keys = {"messages_key": "chat.turns", "prompt_key": "q", "completion_key": "a"}
    facts = chat(path, cache_dir, **keys).facts()[0]
    assert facts.train.num_documents + facts.val.num_documents == 50
    with pytest.raises(
        ConfigError,
        match="^data.messages_key, or data.prompt_key and data.completion_key, must be keys of a "
        "record, got 'messages', or 'prompt' and 'completion', which no record has; the first "
        "record has the keys chat.turns",
    ):
        chat(path, cache_dir)


def test_records_without_a_conversation_are_counted_and_named(tmp_path, cache_dir, caplog):
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    bad = [
        ("without a conversation", {"text": "a"}),
        ("whose prompt or completion is no string", {"prompt": "a"}),
        ("with an empty completion", {"prompt": "a", "completion": ""}),
        ("whose messages are no list of mappings", {"messages": "no JSON"}),
        ("whose messages are no list of mappings", {"messages": ["a"]}),
        ("of an unknown role", {"messages": [user, {"role": "bot", "content": "b"}]}),
        ("of an unknown role", {"messages": [{"role": ["user"], "content": "b"}, answer]}),
        ("whose content is no string", {"messages": [{"role": "user", "content": ["a"]}, answer]}),
        ("with an empty message", {"messages": [{"role": "user", "content": ""}, answer]}),
        ("with a call of a tool", {"messages": [user, {**answer, "tool_calls": [{"id": 1}]}]}),
        ("without a message of the assistant", {"messages": [user]}),
        ("whose text is no valid Unicode", {"prompt": "\ud800", "completion": "b"}),
    ]
    records = [record for _, record in bad] + RECORDS
    path = write_lines(tmp_path / "corpus" / "a.jsonl", records)
    # some have the keys, so that these are not what is wrong
    alone = write_lines(tmp_path / "alone.jsonl", records[: len(bad)])
    with pytest.raises(
        ConfigError, match=r"hold conversations, .* \(skipped 1 record with a call "
    ):
        chat(alone, cache_dir)
    alone.write_text(json.dumps(RECORDS))
    with pytest.raises(ConfigError, match="hold conversations, .* one value instead of one a line"):
        chat(alone, cache_dir)
    assert "jq -c" in caplog.text
    caplog.clear()
    (path.parent / "notes.md").write_text("whole text")
    with caplog.at_level(logging.WARNING):
        facts = chat(path.parent, cache_dir).facts()[0]
    assert facts.train.num_documents + facts.val.num_documents == len(RECORDS)
    (warned,) = (m for m in caplog.messages if m.startswith("data.path: skipped"))
    for number, (reason, _) in enumerate(bad, 1):
        assert reason.split(" no ")[0] in warned and f"a.jsonl:{number}" in warned, reason
    with pytest.raises(ConfigError, match="^data.path must have a file of records .* notes.md"):
        chat(path.parent / "notes.md", cache_dir)


def test_long_conversations_are_cut_or_left_out_and_none_may_remain(tmp_path, cache_dir, caplog):
    records = completion_records(20)  # their prompts have 7 or 8 bytes
    records += [{"prompt": "p" * SEQ, "completion": f"{n}"} for n in range(20)]
    # after the separator, its first label is that of the last token of the row
    records += [{"prompt": "p" * (SEQ - 1), "completion": f"{n}"} for n in range(20)]
    path = write_lines(tmp_path / "corpus" / "a.jsonl", records)
    with caplog.at_level(logging.WARNING):
        data = chat(path, cache_dir, packing=True)
    (train,) = (m for m in caplog.messages if "to train on" in m)
    (val,) = (m for m in caplog.messages if "held out" in m)
    numbers = [[int(word) for word in said.split() if word.isdigit()] for said in (train, val)]
    assert [sum(both) for both in zip(*numbers, strict=True)] == [60, 20, 20]
    found = [d for split in ("train", "val") for b in epoch(data, split) for d in documents(b)]
    wanted = [pairs for pairs in map(expected, records) if pairs]
    assert len(wanted) == 40 and sorted(found) == sorted(wanted)
    with pytest.raises(ConfigError, match="^seq must be large enough .* its answer, got 4, "):
        chat(write_lines(tmp_path / "b.jsonl", records[1:20]), cache_dir, seq=4)
    long = str(write_lines(tmp_path / "c.jsonl", records[20:40]))
    with pytest.raises(ConfigError, match=r"held out \(20\) .* or other files as data.val_path"):
        chat(tmp_path / "b.jsonl", cache_dir, val_path=long)


def test_a_copy_in_another_process_has_the_same_batches(path, cache_dir):
    data = chat(path, cache_dir, packing=True, tokenizer="bpe", vocab_size=300)
    copy = pickle.loads(pickle.dumps(data))
    one, two = data.batch("train", 3), copy.batch("train", 3)
    assert torch.equal(one.labels_BM, two.labels_BM) and one.seqlens == two.seqlens
    assert "assistant\n" in data.decode(one.tokens_BM.flatten().tolist())


def test_a_vocabulary_is_trained_on_the_text_alone(path, cache_dir):
    corpus = find(str(path), text_key=Conversations(), cache_dir=str(cache_dir)).corpus
    pieces, _ = training_text(corpus)
    text = b"".join(pieces).decode()
    assert "assistant\nnaïve " in text and not set(text) & set(map(chr, range(10)))


def test_token_files_of_text_are_those_of_earlier_versions(tmp_path, cache_dir):
    # both were written down before there were conversations: such a cache is not made again
    folder = tmp_path / "corpus"
    write_lines(folder / "a.jsonl", [{"text": f"record {number}"} for number in range(20)])
    (folder / "b.txt").write_text("whole text")
    found = find(str(folder), cache_dir=str(cache_dir))
    assert found.content_digest() == "ccc049c71815a50b7f046e7d2317c1a4"
    digest = "f85b0b707fc5b50501641fa817654a69610ed853b6da87abd43b78ffec1ade00"
    assert found.finish().digest == digest

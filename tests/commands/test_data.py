"""`--config-name data` and the report before training say what a run trains on."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import xftrain
from tests.data.built_tokenizers import built_json
from tests.data.chats import write_lines
from tests.train.runs import SMALL, run
from xftrain.commands.data_report import DataReport
from xftrain.commands.shown_rows import WIDTH, shown_rows
from xftrain.config.compose import compose
from xftrain.data.chat import Chat
from xftrain.data.counting import Counting
from xftrain.data.text import Text
from xftrain.data.tokens.facts import length_histogram
from xftrain.errors import ConfigError
from xftrain.interfaces import SourceFacts, SplitContent
from xftrain.model.prompts import default_prompt


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": f"the \x1b[31m quick fox {n} " * n}) for n in range(1, 60)]
    (folder / "a.jsonl").write_text("\n".join([*lines, *lines[:20]]))
    (tmp_path / "tokenizer.json").write_text(built_json("gpt2"))
    return [
        *("data=text", f"data.path={folder}", f"data.cache_dir={tmp_path / 'cache'}"),
        f"data.tokenizer={tmp_path / 'tokenizer.json'}",
    ]


def described(words, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "xftrain"):
        result = xftrain.run(compose(*SMALL, *words, config_name="data"), tmp_path / "described")
    return result, caplog.text


@pytest.mark.parametrize("packing", ["true", "false"])
def test_it_shows_figures_a_picture_and_three_rows(corpus, tmp_path, caplog, packing):
    result, said = described([*corpus, f"data.packing={packing}"], tmp_path, caplog)
    figures = result["metrics"]
    assert figures["documents"] + figures["val_documents"] == 79
    assert figures["duplicate_share"] == pytest.approx(20 / 79)
    assert figures["bytes_per_token"] == figures["bytes"] / figures["tokens"] > 1
    assert f"{figures['documents']:,} documents to train on, {figures['tokens']:,} tokens" in said
    assert "share of duplicates: 25.3%" in said and "| train |" in said
    assert "row 3 of 3" in said and "\x1b" not in said
    assert (tmp_path / "described" / "document_lengths.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "described").rglob("*.ckpt"))


@pytest.mark.parametrize("name", ["counting", "counting_packed"])
def test_data_without_documents_says_so(tmp_path, caplog, name):
    result, said = described([f"data={name}"], tmp_path, caplog)
    assert result["metrics"] == {} and "has no documents: each batch is made" in said
    assert "row 3 of 3" in said
    assert not (tmp_path / "described" / "document_lengths.png").exists()


def test_a_run_reports_its_data_before_it_trains(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "xftrain"):
        run(tmp_path / "run", *SMALL, *corpus, "max_steps=1")
    line = next(r.message for r in caplog.records if r.message.startswith("data: "))
    assert "documents to train on" in line and "\n" not in line
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "data/document_lengths" in events.Tags()["images"]
    text = events.Tensors("data/text_summary")[0].tensor_proto.string_val[0].decode()
    assert line.removeprefix("data: ") in text and "bytes per token" in text


class Own(Counting):
    facts = None


class Wrong(Counting):
    def facts(self):
        return {"documents": 3}


def test_a_class_without_facts_is_reported_as_unknown():
    report = DataReport(Own(8, 2, 0))
    assert "Own has no facts(), so its numbers of documents, tokens and copies are" in report.line()
    assert report.figures == {} and report.table() == "" and report.picture() is None
    with pytest.raises(ConfigError, match=r"facts\(\) of Wrong must be a method that returns"):
        DataReport(Wrong(8, 2, 0))


def test_what_is_unknown_of_a_source_is_unknown_of_all():
    data = Own(8, 2, 0)
    known = SplitContent(num_documents=3, num_tokens=30, num_bytes=60)
    data.facts = lambda: [SourceFacts("web\x1b", known, known, 1), SourceFacts("code")]
    report = DataReport(data)
    assert report.figures == {} and "unknown documents to train on" in report.line()
    assert "| web\\x1b | train |" in report.table() and "2.00" in report.table()


def test_several_sources_are_summed_and_drawn():
    edges, counts = length_histogram(np.cumsum([0, 3, 5, 900]))
    one = SplitContent(3, 908, 2000, edges, counts)
    data = Own(8, 2, 0)
    data.facts = lambda: [SourceFacts("$a$", one, one, 1), SourceFacts("b", one, one, 0)]
    report = DataReport(data)
    assert report.figures["documents"] == 6 and report.figures["duplicate_share"] == 1 / 12
    (axis,) = report.picture().axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [r"\$a\$", "b"]


@given(lengths=st.lists(st.integers(0, 10**6), min_size=1))
def test_the_histogram_counts_each_document_once(lengths):
    boundaries = np.cumsum([0, *(length + 1 for length in lengths)])
    edges, counts = length_histogram(boundaries)
    assert list(edges) == sorted(set(edges)) and len(edges) == len(counts) + 1
    assert list(counts) == np.histogram(lengths, [*edges[:-1], edges[-1] - 0.5])[0].tolist()
    assert sum(counts) == len(lengths) and counts[-1] > 0


@pytest.mark.parametrize("packing", [True, False])
def test_rows_are_narrow_and_show_where_documents_are_cut(corpus, tmp_path, packing):
    path = corpus[1].removeprefix("data.path=")
    data = Text(32, 4, 0, 1, path=path, packing=packing, cache_dir=str(tmp_path / "cache"))
    shown = shown_rows(data)
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    assert "\x1b" not in shown and shown.count("row ") == 3
    assert "(continued) " in shown and " (to be continued)" in shown
    if packing:
        assert "row 1 of 3: 128 tokens, packed; documents or parts: " in shown


@pytest.mark.parametrize("packing", [True, False])
def test_prompts_are_shown_and_only_padding_is_called_so(tmp_path, packing):
    turns = [("user", "who?"), ("assistant", "me"), ("user", "thanks")]
    messages = [{"role": role, "content": content} for role, content in turns]
    system = {"role": "system"}
    records = [{"messages": [{**system, "content": f"{n}"}, *messages]} for n in range(20)]
    path, cache_dir = str(write_lines(tmp_path / "a.jsonl", records)), str(tmp_path / "cache")
    data = Chat(64, 1, 0, 1, path=path, packing=packing, cache_dir=cache_dir)
    shown = shown_rows(data, num_rows=3)
    assert "64 tokens, 3 of them with a label, " in shown and "(to be continued)" not in shown
    if packing:
        assert "user\\nwho?<|end|>assistant\\nme<|end|>user\\nthanks" in shown
    else:  # a line for each message, and one for the padding
        lines = [line.rpartition("| ")[2] for line in shown.splitlines() if "thanks" in line]
        assert lines and set(lines) == {"user\\nthanks"} and "who?" in shown
        assert shown.count("(padding)") == shown.count("row ")


def test_the_default_prompt_of_conversations_ends_before_the_first_answer(tmp_path):
    for number, prompt in enumerate(("a longer question, of 31 bytes:", "")):
        records = [{"prompt": prompt, "completion": f"answer {n}"} for n in range(9)]
        path = write_lines(tmp_path / str(number) / "a.jsonl", records)
        for packing in (True, False):
            cache_dir = str(tmp_path / "cache")
            data = Chat(64, 1, 0, 1, path=str(path), packing=packing, cache_dir=cache_dir)
            wanted = prompt or "ans"  # without a prompt, a part of the answer
            assert data.decode(default_prompt(data)[0].tolist()) == "<|end|>" + wanted

"""Multiple-choice tasks: log-likelihoods are those of the model, and damaged lines are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import xftrain
from tests.models import gpt
from tests.train.runs import last, run
from xftrain.data.tokens.tokenizer import Bpe, Bytes
from xftrain.errors import ConfigError
from xftrain.evaluation.likelihood import likelihoods, split_tokens
from xftrain.evaluation.tasks import Task, read_task, result_of

GOOD = {"query": "2 + 2 =", "choices": [" 3", " 4"], "gold": 1}


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_every_form_of_a_question_is_read(tmp_path: Path) -> None:
    arc = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "B"}
    named = {"context": "c", "choices": ["x", "y"], "label": "y"}
    numbered = {
        "ctx": "n",
        "choices": {"text": ["2", "9"], "label": ["1", "2"]},
        "answerKey": "2",
    }
    index = {"query": "i", "choices": ["x", "y"], "label": "1"}
    task = read_task(write(tmp_path / "t.jsonl", GOOD, "", arc, named, numbered, index))
    golds = [("2 + 2 =", 1), ("q", 1), ("c", 1), ("n", 1), ("i", 1)]
    assert [(q.context, q.gold) for q in task.questions] == golds
    assert task.name == "t" and not task.malformed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, [" 3", " 4"]),  # as lm-evaluation-harness joins them
        ({"choices": [" 3", "4"]}, [" 3", " 4"]),
        ({"query": "2 + 2 = "}, ["3", "4"]),
        ({"target_delimiter": ""}, ["3", "4"]),
        ({"target_delimiter": "\n"}, ["\n3", "\n4"]),
    ],
)
def test_a_blank_separates_context_and_choice(
    tmp_path: Path, changed: dict[str, object], said: list[str]
) -> None:
    line = {"query": "2 + 2 =", "choices": ["3", "4"], "gold": 1, **changed}
    (question,) = read_task(write(tmp_path / "t.jsonl", line)).questions
    assert question.continuations == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({**GOOD, "query": 3}, "no text under one of query"),
        ({**GOOD, "choices": ["one"]}, "choices is no list of at least two texts"),
        ({**GOOD, "choices": ["one", ""]}, "choices is no list of at least two texts"),
        ({**GOOD, "gold": 2}, "no index or text of a choice under one of gold"),
        ({**GOOD, "gold": True}, "no index or text of a choice"),
        ({**GOOD, "gold": "9" * 5000}, "no index or text of a choice"),
        ({**GOOD, "choices": ["1", "0"], "gold": "1"}, "index of one choice and the text of ano"),
        ({**GOOD, "target_delimiter": 1}, "target_delimiter is no text"),
        ('{"query": "\\ud800", "choices": ["a", "b"], "gold": 0}', "half of a surrogate pair"),
        ("9" * (5 << 20), "not a JSON object"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: object, said: str) -> None:
    task = read_task(write(tmp_path / "t.jsonl", GOOD, line, GOOD))
    assert len(task.questions) == 2 and task.malformed[0][0] == 2
    assert said in task.describe_malformed()
    with pytest.raises(ConfigError, match="JSONL files with a question in each line"):
        read_task(write(tmp_path / "u.jsonl", line))


@settings(max_examples=30)
@given(st.text(max_size=12), st.text(min_size=1, max_size=8))
def test_both_parts_are_the_tokens_of_the_whole(context: str, continuation: str) -> None:
    bpe = Bpe.train([b"the cat sat on the mat, the cat sat" * 20], 300)
    for vocabulary in (Bytes(), bpe):
        before, after = split_tokens(vocabulary, context, continuation)
        whole = vocabulary.encode(context + continuation)
        assert before[0] == vocabulary.separator
        assert [*before[1:], *after] == whole or not context.rstrip()


def test_a_likelihood_is_the_sum_of_the_log_probabilities() -> None:
    model = gpt(scale=3.0).eval()
    pairs = [([1, 2, 3], [4]), ([5], [6, 7, 8]), ([1], [2]), ([9, 9], [3, 4])]
    for max_tokens in (1, 5, 1000):
        all_found = likelihoods(model, pairs, max_tokens, model.max_positions)
        for found, (context, added) in zip(all_found, pairs, strict=True):
            tokens = torch.tensor([[*context, *added]])
            with torch.no_grad():
                logs = model(tokens)[0].log_softmax(-1)
            places = range(len(context) - 1, tokens.shape[1] - 1)
            want = sum(float(logs[at, tokens[0, at + 1]]) for at in places)
            assert found.log_likelihood == pytest.approx(want, abs=1e-4)
            greedy = all(int(logs[at].argmax()) == int(tokens[0, at + 1]) for at in places)
            assert (found.is_greedy, found.is_cut) == (greedy, False)


def test_a_context_that_is_too_long_is_cut_on_the_left() -> None:
    model = gpt(scale=3.0).eval()  # of 130 positions
    context = torch.randint(64, (200,)).tolist()
    for limit in (130, 50):
        pairs = [(context, [1, 2]), (context[1 - limit :], [1, 2])]
        found, same = likelihoods(model, pairs, 1000, limit)
        assert found.is_cut and not same.is_cut
        assert found.log_likelihood == pytest.approx(same.log_likelihood)


def test_accuracy_counts_the_likeliest_and_the_likeliest_per_byte() -> None:
    task = read_task_of({"query": "q", "choices": ["ab", "abcdefgh"], "gold": 1}, GOOD)
    found = result_of(task, [-4.0, -8.0, -1.0, -2.0], num_cut=1)
    assert (found.accuracy, found.accuracy_per_byte, found.num_cut) == (0.0, 0.5, 1)
    assert found.metrics()["task/t/acc_norm"] == found.accuracy_per_character == 0.5
    assert found.metrics()["task/t/acc_stderr"] == 0.0


def read_task_of(*records: dict[str, object]) -> Task:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_task(write(Path(folder) / "t.jsonl", *records))


def test_the_command_evaluates_tasks(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("the cat sat on the mat. " * 400)
    words = ("data=text", f"data.path={tmp_path / 'corpus.txt'}", "seq=64")
    run(tmp_path / "run", *words, "max_steps=60", "optim.lr=0.02", "batch_tokens=256")
    questions = [{"query": "the cat sat on", "choices": ["the mat", "qqzzxx"], "gold": 0}] * 3
    path = write(tmp_path / "cats.jsonl", *questions, "{")
    ckpt = last(tmp_path / "run")
    cfg = xftrain.compose(f"ckpt={ckpt}", f"tasks=[{path}]", "~data", config_name="evaluate")
    found = xftrain.run(cfg, tmp_path / "e")["metrics"]
    names = ("acc", "acc_norm", "acc_bytes", "acc_stderr")
    assert found == {f"task/cats/{name}": float(name != "acc_stderr") for name in names}


def test_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = [write(folder / "cats.jsonl", GOOD) for folder in (tmp_path, tmp_path / "a")]
    words = (f"tasks=[{paths[0]},{paths[1]}]", "~data", "ckpt=none.ckpt")
    cfg = xftrain.compose(*words, config_name="evaluate")
    with pytest.raises(ConfigError, match="tasks must be files of different names"):
        xftrain.run(cfg, tmp_path / "e")

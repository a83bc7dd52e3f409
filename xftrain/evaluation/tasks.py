"""Multiple-choice tasks: the choice that the model finds most likely, from a local file.

A task is a JSONL file in the form that lm-evaluation-harness has for multiple choice: in each line
a context (`query`, `question` or `context`), the texts to choose from (`choices`), the index or the
text of the right one (`gold`, `label` or `answer`), and, optionally, the text between context and
choice (`target_delimiter`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xftrain.errors import ConfigError
from xftrain.utils.files import open_plain
from xftrain.utils.printable import one_line

CONTEXT_KEYS = ("query", "question", "context", "ctx")
GOLD_KEYS = ("gold", "label", "answer", "answerKey")
DELIMITER_KEY = "target_delimiter"
_MAX_LINE_BYTES = 1 << 22
_MAX_DIGITS = 10  # of an index that is written as text
_NUM_NAMED = 3  # malformed lines that are named in the log


@dataclass(frozen=True)
class Question:
    """A question of a task.

    Attributes:
        context: the text before the choice.
        choices: the texts to choose from.
        gold: index of the right one.
        delimiter: the text between the context and a choice; None for a blank, as
            lm-evaluation-harness has it, unless there is whitespace on either side.
    """

    context: str
    choices: tuple[str, ...]
    gold: int
    delimiter: str | None = None

    @property
    def continuations(self) -> list[str]:
        """What follows the context with each choice."""
        return [self._delimiter_of(choice) + choice for choice in self.choices]

    def _delimiter_of(self, choice: str) -> str:
        if self.delimiter is not None:
            return self.delimiter
        return "" if self.context[-1:].isspace() or choice[0].isspace() else " "


@dataclass
class Task:
    """The questions of a file.

    Attributes:
        name: name of the file, without its ending.
        questions: the questions.
        malformed: for each line that is no question, its number and the reason.
    """

    name: str
    questions: list[Question] = field(default_factory=list)
    malformed: list[tuple[int, str]] = field(default_factory=list)

    def describe_malformed(self) -> str:
        """How many lines are malformed, and the first ones with their reasons."""
        named = "; ".join(f"line {n}: {reason}" for n, reason in self.malformed[:_NUM_NAMED])
        more = ", ..." if len(self.malformed) > _NUM_NAMED else ""
        return f"{len(self.malformed)} lines are no questions and are left out ({named}{more})"


def read_task(path: Path) -> Task:
    """Reads a task.

    Raises:
        ConfigError: the file cannot be read, or has no question.
    """
    task = Task(one_line(path.stem))
    try:
        with open_plain(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                try:
                    task.questions.append(_question(line))
                except ValueError as error:
                    task.malformed.append((number, one_line(str(error))[:100]))
    except OSError as error:
        raise ConfigError(
            f"tasks must be JSONL files, and {one_line(str(path))} cannot be read "
            f"({error.strerror or error}): give the path of one."
        ) from error
    if not task.questions:
        said = f": {task.describe_malformed()}" if task.malformed else ", and it is empty"
        raise ConfigError(
            f"tasks must be JSONL files with a question in each line, got {one_line(str(path))} "
            f"without any{said}; a line is "
            '{"query": "2 + 2 =", "choices": [" 3", " 4"], "gold": 1}.'
        )
    return task


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            while len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(_MAX_LINE_BYTES + 1)
            line = b'"longer than 4 MiB"'
        yield line


def _question(line: bytes) -> Question:
    """Reads one line; raises ValueError with what is wrong."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(record, Mapping):
        raise ValueError("not a JSON object")
    context = next((record[key] for key in CONTEXT_KEYS if key in record), None)
    if not isinstance(context, str):
        raise ValueError(f"no text under one of {', '.join(CONTEXT_KEYS)}")
    choices = record.get("choices")
    if isinstance(choices, Mapping):  # as ARC has them: {"text": [...], "label": [...]}
        labels, choices = choices.get("label"), choices.get("text")
    else:
        labels = None
    is_list = isinstance(choices, list) and len(choices) > 1
    if not is_list or not all(isinstance(one, str) and one for one in choices or ()):
        raise ValueError("choices is no list of at least two texts")
    assert isinstance(choices, list)
    delimiter = record.get(DELIMITER_KEY)
    if not (delimiter is None or isinstance(delimiter, str)):
        raise ValueError(f"{DELIMITER_KEY} is no text")
    gold = _gold(next((record[key] for key in GOLD_KEYS if key in record), None), choices, labels)
    try:
        "".join((context, *choices, delimiter or "")).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair") from error
    return Question(context, tuple(choices), gold, delimiter)


def _gold(value: Any, choices: list[str], labels: Any) -> int:
    """Index of the right choice; raises ValueError if the value does not name exactly one."""
    meanings = {value} if type(value) is int else set()
    if isinstance(value, str):
        if isinstance(labels, list) and value in labels:
            meanings = {labels.index(value)}  # the labels are there to be named
        else:
            meanings = {index for index, choice in enumerate(choices) if choice == value}
            if value.isascii() and value.isdigit() and len(value) < _MAX_DIGITS:
                meanings |= {int(value)} & set(range(len(choices)))
    if len(meanings) > 1:
        raise ValueError(f"{value} is the index of one choice and the text of another")
    if not meanings or not 0 <= (gold := meanings.pop()) < len(choices):
        raise ValueError(f"no index or text of a choice under one of {', '.join(GOLD_KEYS)}")
    return gold


@dataclass(frozen=True)
class TaskResult:
    """How many questions a model answers as it should.

    Attributes:
        name: the task.
        num_questions: number of questions.
        accuracy: share of the questions whose likeliest choice is right.
        accuracy_per_character: the same with log-likelihoods divided by the characters of the
            choice, without a delimiter, as `acc_norm` of lm-evaluation-harness.
        accuracy_per_byte: the same with its bytes in UTF-8, as `acc_bytes` there.
        num_cut: number of contexts that were cut on the left, as the model has too few positions.
    """

    name: str
    num_questions: int
    accuracy: float
    accuracy_per_character: float
    accuracy_per_byte: float
    num_cut: int

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy; 0 for a single question."""
        spread = self.accuracy * (1 - self.accuracy)
        return math.sqrt(spread / (self.num_questions - 1)) if self.num_questions > 1 else 0.0

    def metrics(self) -> dict[str, float]:
        """The figures by their names in `result.json`."""
        return {
            f"task/{self.name}/acc": self.accuracy,
            f"task/{self.name}/acc_norm": self.accuracy_per_character,
            f"task/{self.name}/acc_bytes": self.accuracy_per_byte,
            f"task/{self.name}/acc_stderr": self.standard_error,
        }


def result_of(task: Task, log_likelihoods: Sequence[float], num_cut: int) -> TaskResult:
    """The result of a task, from the log-likelihoods of all choices of all questions, in order."""
    at, right = 0, [0, 0, 0]
    for question in task.questions:
        found = log_likelihoods[at : at + len(question.choices)]
        at += len(question.choices)
        lengths = [
            [1] * len(found),
            [len(choice) for choice in question.choices],
            [len(choice.encode()) for choice in question.choices],
        ]
        for kind, sizes in enumerate(lengths):
            scores = [x / size for x, size in zip(found, sizes, strict=True)]
            right[kind] += max(range(len(scores)), key=scores.__getitem__) == question.gold
    assert at == len(log_likelihoods)
    size = len(task.questions)
    plain, per_character, per_byte = (count / size for count in right)
    return TaskResult(task.name, size, plain, per_character, per_byte, num_cut)

"""What is read of a record: the text at a key, or a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xftrain.data.corpus.skipped import WITHOUT_CONVERSATION, WITHOUT_KEY, WITHOUT_TURNS
from xftrain.utils.printable import one_line

ASSISTANT = "assistant"
ROLES = ("system", "developer", "user", ASSISTANT, "tool")
_MAY_BE_EMPTY = ("system", "developer")  # an empty message of these roles is left out
_TOOL_CALLS = ("tool_calls", "function_call")
_NO_TEXT = "record whose text is no text"
_INVALID_TURNS = (
    _NO_PAIR := "record whose prompt or completion is no text",
    _EMPTY_COMPLETION := "empty completion",
    _NO_MESSAGES := "record whose messages are no messages",
    _UNKNOWN_ROLE := "message of an unknown role",
    _TOOL_CALL := "call of a tool",
    _NO_CONTENT := "message whose content is no text",
    _EMPTY_MESSAGE := "empty message",
    _NO_ANSWER := "conversation without the assistant",
)


class RecordError(Exception):
    """A record is skipped; the message is the reason."""


class Selection(Protocol):
    """What is read of a record.

    Attributes:
        without_value: the reason why a record that does not have it is skipped.
        without_columns: the reason why a table that does not have it is skipped.
        invalid: the reasons why a record that has it is skipped.
        remedy: the end of an error: what is missing, what was skipped, and what to give instead.
    """

    @property
    def without_value(self) -> str: ...

    @property
    def without_columns(self) -> str: ...
    @property
    def invalid(self) -> Sequence[str]: ...
    @property
    def remedy(self) -> str: ...

    def rule(self) -> str:
        """The beginning of an error: the configured keys, which a record must have."""
        ...

    def columns(self, names: Sequence[str], *, nested: bool) -> list[str]:
        """The columns of a table that are read; empty if the table lacks one that is needed.

        Args:
            names: the names of all columns.
            nested: whether a column may hold mappings.
        """
        ...

    def value(self, record: Any) -> Any:
        """What is read of a record, unchecked; None if the record does not have it."""
        ...

    def text(self, value: Any) -> str:
        """The text of a value other than None.

        Raises:
            RecordError: it has none.
        """
        ...


@dataclass(frozen=True)
class TextKey:
    """The text at a key.

    Attributes:
        key: the key; dots lead into nested records.
    """

    key: str
    without_value = "record without text"
    without_columns = WITHOUT_KEY
    invalid = (_NO_TEXT,)
    remedy = "text, got files without a document (skipped {}); give a file or folder of text."

    def rule(self) -> str:
        return f"data.text_key must be the key of the text in a record, got {one_line(self.key)!r}"

    def columns(self, names: Sequence[str], *, nested: bool) -> list[str]:
        return _column(names, self.key, nested=nested)

    def value(self, record: Any) -> Any:
        return value_at(record, self.key)

    def text(self, value: Any) -> str:
        if isinstance(value, str) and _is_text(value):
            return value
        raise RecordError(_NO_TEXT)


@dataclass(frozen=True)
class Conversations:
    """A list of messages with their roles, or else a prompt with its completion.

    The text of a conversation is JSON with its roles and contents alone, so that records that
    differ in other keys are copies of each other.

    Attributes:
        messages_key: the key of the list of messages, each with `role` and `content`.
        prompt_key: the key of the prompt.
        completion_key: the key of the completion.
        template: the version of the tokens in which conversations are written; increase it
            whenever the same conversation would give other tokens.
    """

    messages_key: str = "messages"
    prompt_key: str = "prompt"
    completion_key: str = "completion"
    template: int = 1
    without_value = WITHOUT_TURNS
    without_columns = WITHOUT_CONVERSATION
    invalid = (_NO_TEXT, *_INVALID_TURNS)
    remedy = (
        "conversations, got files without a valid one (skipped {}); give records with messages, "
        f"each with content and a role of {', '.join(ROLES)}, or with a prompt and its completion."
    )

    def rule(self) -> str:
        keys = map(one_line, (self.messages_key, self.prompt_key, self.completion_key))
        return (
            "data.messages_key, or data.prompt_key and data.completion_key, must be keys of a "
            "record, got {!r}, or {!r} and {!r}".format(*keys)
        )

    def columns(self, names: Sequence[str], *, nested: bool) -> list[str]:
        messages = _column(names, self.messages_key, nested=nested)
        prompt, completion = (
            _column(names, key, nested=nested) for key in (self.prompt_key, self.completion_key)
        )
        pair = prompt + completion if prompt and completion else []
        return list(dict.fromkeys(messages + pair))  # several keys may lead into one column

    def value(self, record: Any) -> Any:
        messages = value_at(record, self.messages_key)
        if messages is not None and messages != "":  # CSV has an empty cell where there is no value
            return {"messages": messages}
        prompt, completion = (
            value_at(record, key) for key in (self.prompt_key, self.completion_key)
        )
        if prompt is None and completion is None:
            return None
        return {"prompt": prompt, "completion": completion}

    def text(self, value: Any) -> str:
        if "messages" in value:
            turns = {"messages": _messages(value["messages"])}
        else:
            turns = _checked_pair(value)
        text = json.dumps(turns, ensure_ascii=False, separators=(",", ":"))
        if _is_text(text):
            return text
        raise RecordError(_NO_TEXT)


def selection_of(text_key: str | Conversations) -> Selection:
    """What is read of a record, by the key of its text or the keys of its conversation."""
    return TextKey(text_key) if isinstance(text_key, str) else text_key


def value_at(record: Any, key: str) -> Any:
    """The value at a dotted key; None if there is none. A key that has dots itself comes first."""
    if isinstance(record, Mapping) and key in record:
        return record[key]
    for part in key.split("."):
        if not isinstance(record, Mapping):
            return None
        record = record.get(part)
    return record


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON may hold half of a surrogate pair."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _column(names: Sequence[str], key: str, *, nested: bool) -> list[str]:
    """The column of a table in which a key is, or none."""
    root = key if key in names or not nested else key.partition(".")[0]
    return [root] if root in names else []


def _checked_pair(value: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt and the completion, checked."""
    prompt, completion = value["prompt"], value["completion"]
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise RecordError(_NO_PAIR)
    if not completion:
        raise RecordError(_EMPTY_COMPLETION)
    return {"prompt": prompt, "completion": completion}


def _messages(messages: Any) -> list[list[str]]:
    """The role and the content of each message, checked."""
    if isinstance(messages, str):  # the cells of CSV are strings
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            messages = None
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise RecordError(_NO_MESSAGES)
    found = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise RecordError(_UNKNOWN_ROLE)
        if any(message.get(key) for key in _TOOL_CALLS):
            raise RecordError(_TOOL_CALL)
        if not isinstance(content, str):
            raise RecordError(_NO_CONTENT)
        if content:
            found.append([role, content])
        elif role not in _MAY_BE_EMPTY:
            raise RecordError(_EMPTY_MESSAGE)
    if not any(role == ASSISTANT for role, _ in found):
        raise RecordError(_NO_ANSWER)
    return found

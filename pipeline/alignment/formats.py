"""The shapes that chat data come in, each as a pure function from a row to its messages.

What a shape carries beside roles and texts (tools, pictures, reasoning in a field of its own) would be missing in the
text that the models read: such rows are refused by name, never reduced in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_UNREAD_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_UNREAD_COLUMNS = ("tools", "functions", "documents", "history", *_UNREAD_MEDIA)
_UNREAD_FIELDS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", *_UNREAD_MEDIA)
_EMPTY = ("", "[]", "{}", "null")  # as tables write that there is nothing
_NO_TARGET = ("train", "loss")  # false: this answer is context (Axolotl, ms-swift)


class Message(TypedDict):
    """One turn as chat templates take it; `weight` 0: an answer that is context and no target."""

    role: str
    content: str
    weight: NotRequired[int]


class BadRow(ValueError):
    """A row that cannot be read: what is wrong and where, and in `reason` its kind, a word to count it under."""

    def __init__(self, reason: str, message: str, where: str = ""):
        super().__init__(message)
        self.reason, self.where = reason, where

    def of(self, row_label: str) -> str:
        """The message with row and place."""
        return f"{row_label}, {self.where}: {self}" if self.where else f"{row_label}: {self}"


@dataclass(frozen=True)
class RowFormat:
    """A shape of rows: the columns that show it, those that it may have beside them, and its reader."""

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Message]]

    def used(self, columns: Iterable[str]) -> list[str]:
        """Those of a table's columns that a reader must see."""
        wanted = {*self.columns, *self.optional, *_UNREAD_COLUMNS}
        return [column for column in columns if column in wanted]


def is_tokenized(columns: Iterable[str]) -> bool:
    """Whether rows are token ids of another program, as the authors of TIDE publish their data."""
    return {"input_ids", "labels"} <= set(columns)


def read_row(row: Any, shape: RowFormat) -> list[Message]:
    """The conversation of a row. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow("not_an_object", f"no `{shape.columns[0]}`: the row is {type(row).__name__}, not an object")
    if unread := [name for name in _UNREAD_COLUMNS if _is_filled(row.get(name))]:
        raise BadRow(
            unread[0], f"`{unread[0]}` would be missing in the text: write it into the messages, or drop the row"
        )
    if missing := [column for column in shape.columns if row.get(column) is None]:
        raise BadRow(f"no_{missing[0]}", f"no `{missing[0]}`, but {', '.join(row) or 'nothing'}")
    return shape.read(row)


def _is_filled(value: Any) -> bool:
    """Whether a column or field says something; Parquet fills structures with nulls."""
    if isinstance(value, str):
        return value.strip() not in _EMPTY
    if isinstance(value, Mapping):
        return any(map(_is_filled, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_filled, value))
    return bool(value)


def detect(columns: Iterable[str]) -> str | None:
    """The name of the format that has these columns, None for an unknown one."""
    present = set(columns)
    return next((name for name, shape in FORMATS.items() if present.issuperset(shape.columns)), None)


def _turns_of(column: str) -> Callable[[Mapping[str, Any]], list[Message]]:
    def read(row: Mapping[str, Any]) -> list[Message]:
        turns, system = _conversation(row[column], column), _system(row)
        if not system or turns[0] == system[0]:
            return turns
        if turns[0]["role"] == "system":
            raise BadRow("system", f"`system` and the first of `{column}` are two system prompts: leave one")
        return system + turns

    return read


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    extra = row.get("input")
    question = f"{_text(row['instruction'])}\n\n{_text(extra)}" if extra else row["instruction"]
    return [*_system(row), _message("user", question), _message("assistant", row["output"])]


def _prompt_and(answer: str) -> Callable[[Mapping[str, Any]], list[Message]]:
    def read(row: Mapping[str, Any]) -> list[Message]:
        parts = []
        for column, role in (("prompt", "user"), (answer, "assistant")):
            value = row[column]
            parts += _conversation(value, column) if isinstance(value, list) else [_message(role, value)]
        return _system(row) + parts

    return read


def _system(row: Mapping[str, Any]) -> list[Message]:
    return [_message("system", row["system"])] if row.get("system") else []


def _conversation(value: Any, column: str) -> list[Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(
                f"no_{column}", f"no `{column}`, a list of {{role, content}}, but text that is no JSON"
            ) from None
    if not isinstance(value, list) or not value:
        raise BadRow(f"no_{column}", f"no `{column}`, a list of {{role, content}}")
    turns = []
    for index, turn in enumerate(value):
        try:
            turns.append(_turn(turn))
        except BadRow as error:
            raise BadRow(error.reason, str(error), f"message {index}") from None
    return turns


def _turn(turn: Any) -> Message:
    turn = turn if isinstance(turn, dict) else {}
    if unread := [name for name in _UNREAD_FIELDS if _is_filled(turn.get(name))]:
        raise BadRow(unread[0], f"`{unread[0]}` would be missing in the text: write it into content, or drop the row")
    speaker = turn.get("role") or turn.get("from")
    message = _message(_SPEAKERS.get(str(speaker), speaker), turn.get("content", turn.get("value")))
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise BadRow("weight", f"weight {weight!r} is neither 0 nor 1")
    if weight == 0 or any(turn.get(name) is False for name in _NO_TARGET):
        message["weight"] = 0
    return message


def _message(role: Any, content: Any) -> Message:
    if role not in ROLES:
        raise BadRow("role", f"role {role!r} is not one of {', '.join(ROLES)}")
    text = _text(content)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("surrogate", "content holds half a surrogate pair, which no tokenizer can read") from None
    return {"role": role, "content": text}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(map(_part, content))
    if not isinstance(content, str):
        raise BadRow("content", f"content is {type(content).__name__}, not a string")
    return content


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") == "text":
        part = part.get("text")
    if not isinstance(part, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise BadRow("content", f"content is list with a part of type {kind}, and only text can be read")
    return part


FORMATS = {
    "messages": RowFormat(("messages",), ("system",), _turns_of("messages")),
    "sharegpt": RowFormat(("conversations",), ("system",), _turns_of("conversations")),
    "alpaca": RowFormat(("instruction", "output"), ("input", "system"), _alpaca),
    "prompt_completion": RowFormat(("prompt", "completion"), ("system",), _prompt_and("completion")),
    "prompt_response": RowFormat(("prompt", "response"), ("system",), _prompt_and("response")),
}
"""By name, in the order in which they are looked for."""

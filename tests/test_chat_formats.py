"""Rows of every shape become the same messages; what would be missing in their text is refused by name."""

from __future__ import annotations

import json

import pytest

from pipeline.alignment.formats import FORMATS, BadRow, detect, read_row

USER, ASSISTANT = {"role": "user", "content": "12 plus 30?"}, {"role": "assistant", "content": "42."}
SYSTEM = {"role": "system", "content": "Be brief."}
PARTS = [{"type": "text", "text": "12 plus "}, {"type": "text", "text": "30?"}]
SHAREGPT = [{"from": "human", "value": "12 plus 30?"}, {"from": "gpt", "value": "42."}]

SHAPES = {
    "messages": {"messages": [USER, ASSISTANT]},
    "JSON in a string": {"messages": json.dumps([USER, ASSISTANT])},
    "text parts": {"messages": [{"role": "user", "content": PARTS}, ASSISTANT]},
    "plain parts": {"messages": [{"role": "user", "content": ["12 plus ", "30?"]}, ASSISTANT]},
    "empty tools as text": {"messages": [USER, ASSISTANT | {"function_call": {"name": None}}], "tools": "[]", "images": [None]},
    "empty tools": {"messages": [USER, ASSISTANT | {"tool_calls": None, "name": "x"}], "tools": [], "id": 1},
    "ShareGPT": {"conversations": SHAREGPT},
    "ShareGPT, user and assistant": {"conversations": [{"from": m["role"], "value": m["content"]} for m in (USER, ASSISTANT)]},
    "conversations of roles": {"conversations": [USER, ASSISTANT]},
    "Alpaca": {"instruction": "12 plus 30?", "input": "", "output": "42."},
    "OpenCoder": {"instruction": "12 plus 30?", "output": "42.", "seq_id": 1},
    "prompt and completion": {"prompt": "12 plus 30?", "completion": "42."},
    "prompt and response": {"prompt": "12 plus 30?", "response": "42."},
    "prompt and completion of messages": {"prompt": [USER], "completion": [ASSISTANT]},
}  # fmt: skip


def read(row: dict) -> list:
    return read_row(row, FORMATS[detect(row)])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_messages(shape):
    assert read(SHAPES[shape]) == [USER, ASSISTANT]


@pytest.mark.parametrize("shape", ["messages", "ShareGPT", "Alpaca", "prompt and completion"])
def test_a_column_with_the_system_prompt_comes_first(shape):
    assert read(SHAPES[shape] | {"system": "Be brief."}) == [SYSTEM, USER, ASSISTANT]
    assert read(SHAPES[shape] | {"system": ""}) == [USER, ASSISTANT]


def test_a_system_prompt_that_stands_twice_is_taken_once():
    assert read({"messages": [SYSTEM, USER, ASSISTANT], "system": "Be brief."}) == [SYSTEM, USER, ASSISTANT]


def test_the_input_of_an_instruction_follows_it():
    user, _ = read({"instruction": "Add.", "input": "12, 30", "output": "42."})
    assert user["content"] == "Add.\n\n12, 30"


def test_weights_of_0_are_kept():
    for mark in ({"weight": 0}, {"train": False}, {"loss": False}):
        assert read({"messages": [USER, ASSISTANT | mark]})[1] == ASSISTANT | {"weight": 0}
    for mark in ({"weight": 1}, {"weight": None}, {"train": True}):
        assert read({"messages": [USER, ASSISTANT | mark]})[1] == ASSISTANT


REFUSED = {
    "tool_calls": ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}, "message 1: `tool_calls`"),
    "function_call": ({"messages": [USER, ASSISTANT | {"function_call": {"name": "f"}}]}, "message 1: `function_call`"),
    "reasoning_content": ({"messages": [USER, ASSISTANT | {"reasoning_content": "So."}]}, "message 1: `reasoning_content`"),
    "tools": ({"messages": [USER, ASSISTANT], "tools": [{"name": "f"}]}, "`tools` would be missing in the text"),
    "images": ({"messages": [USER, ASSISTANT], "images": ["cat.png"]}, "`images` would be missing"),
    "history": ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "`history` would be missing"),
    "image": ({"messages": [USER | {"image": "cat.png"}, ASSISTANT]}, "message 0: `image` would be missing"),
    "system": ({"messages": [SYSTEM, USER, ASSISTANT], "system": "Be long."}, "two system prompts: leave one"),
    "role": ({"messages": [{"role": "developer", "content": "x"}, ASSISTANT]}, "message 0: role 'developer' is not one of"),
    "weight": ({"messages": [USER, ASSISTANT | {"weight": 0.5}]}, "message 1: weight 0.5 is neither 0 nor 1"),
    "content": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 0: content is list with a part of type image_url"),
    "no_messages": ({"messages": "no JSON"}, "no `messages`, a list of {role, content}, but text that is no JSON"),
    "no_output": ({"instruction": "x", "output": None}, "no `output`, but instruction, output"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_be_lost_is_refused_by_name(reason):
    row, message = REFUSED[reason]
    with pytest.raises(BadRow) as error:
        read(row)
    assert message in error.value.of("row 0") and error.value.reason == reason


def test_unknown_columns_are_no_format():
    assert detect(["text", "meta"]) is None

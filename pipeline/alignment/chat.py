"""Chat templates: rendering conversations and finding every message's content in the rendered text.

Searching for a content finds the wrong place when it also occurs in the prompt or the template. Instead the template is
rendered once for every shape of conversation with placeholders for contents, which gives its fixed text; that text,
and the contents between it, must then make up the whole rendered conversation. Templates may trim a content or leave it
out (reasoning of earlier turns); what they rewrite is not found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

from pipeline.alignment.control_tokens import MARKUP
from pipeline.alignment.formats import Message
from pipeline.core.errors import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Message]

# The same text on every day: Llama 3 and gpt-oss print the date. A macro hides the function of that name.
_FIXED_DATE = (
    "{%- macro strftime_now(format) %}{{- '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}{%- endmacro %}\n"
)
_HOLE = "\ue000{}\ue001"
_HOLES = re.compile("\ue000([0-9]+)\ue001")


class ContentSpan(NamedTuple):
    """A stretch of a message's content that the rendered text shows, in bytes."""

    message: int
    start: int
    """position in the content"""
    text: int
    """position in the rendered text"""
    length: int


@dataclass(frozen=True)
class Refusal:
    """A template's refusal of a conversation, with its message."""

    words: str


class ChatTemplate:
    """A tokenizer's chat template, with thinking switched off and a fixed date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._template = _FIXED_DATE + tokenizer.get_chat_template()
        self._fixed_text = lru_cache(maxsize=4096)(self._render_fixed_text)

    def render(self, conversations: Sequence[Messages]) -> list[str | Refusal]:
        """The text of every conversation, or why the template refuses it (an unknown role, turns out of order)."""
        try:
            return [*self._apply(conversations)]
        except Exception:  # a template can raise anything
            return [self._render_one(messages) for messages in conversations]

    def locate(self, messages: Messages, text: bytes) -> list[ContentSpan] | None:
        """The spans of all contents in the order of the text; None where the template rewrites a content."""
        whole = [[message["content"]] for message in messages]
        runs = self._match(messages, whole, text)
        if runs is None:
            runs = self._match(messages, [MARKUP.split(content) for (content,) in whole], text)
        return runs

    def leaves_out(self, messages: Messages) -> bool:
        """Whether the template shows nothing of some message."""
        filled = [number for number, message in enumerate(messages) if message["content"].strip()]
        shape = [
            (message["role"], _HOLE.format(number) if number in filled else "")
            for number, message in enumerate(messages)
        ]
        fixed = self._fixed_text(tuple(shape))
        return fixed is not None and not {*map(str, filled)} <= {*fixed[1::2]}

    def _apply(self, conversations: Sequence[Messages]) -> list[str]:
        texts = self._tokenizer.apply_chat_template(
            cast(list[list[dict[str, str]]], [list(messages) for messages in conversations]),
            chat_template=self._template,
            tokenize=False,
            enable_thinking=False,
        )
        return cast(list[str], texts)

    def _render_one(self, messages: Messages) -> str | Refusal:
        try:
            return self._apply([messages])[0]
        except Exception as error:
            return Refusal(one_line(error))

    def _render_fixed_text(self, shape: tuple[tuple[str, str], ...]) -> list[str] | None:
        """Fixed text and numbers of holes in turn, as the template renders this shape."""
        text = self._render_one([{"role": role, "content": content} for role, content in shape])
        return None if isinstance(text, Refusal) else _HOLES.split(text)

    def _match(self, messages: Messages, parts: list[list[str]], text: bytes) -> list[ContentSpan] | None:
        # Templates branch on MARKUP, so placeholders leave it in place.
        holes: list[tuple[int, int, str]] = []  # message, byte position in its content, text
        shape = []
        for number, message in enumerate(messages):
            content, start = "", 0
            for part in parts[number]:
                is_hole = bool(part.strip()) and not MARKUP.fullmatch(part)
                content += _HOLE.format(len(holes)) if is_hole else part
                if is_hole:
                    holes.append((number, start, part))
                start += len(part.encode())
            shape.append((message["role"], content))
        fixed = self._fixed_text(tuple(shape))
        if fixed is None:
            return None
        between = [piece.encode() for piece in fixed[::2]]
        position, runs, reached = len(between[0]), [], (0, 0)
        if not text.startswith(between[0]):
            return None
        for hole, following in zip(map(int, fixed[1::2]), between[1:], strict=True):
            number, start, part = holes[hole]
            placed = _find(part, following, text, position)
            if placed is None:
                return None
            skipped, length = placed
            if (number, start) >= reached:  # else shown again, or out of turn: chunks must follow the order of the text
                runs.append(ContentSpan(number, start + skipped, position, length))
                reached = number, start + len(part.encode())
            position += length + len(following)
        if position != len(text):
            return None
        return _with_markup(runs, messages, text)


def _find(part: str, following: bytes, text: bytes, position: int) -> tuple[int, int] | None:
    """How much of the part's beginning is left out, and how many bytes of it stand at `position` before `following`."""
    verbatim = part.encode()
    if text.startswith(verbatim, position) and text.startswith(following, position + len(verbatim)):
        return 0, len(verbatim)
    core = part.strip().encode()
    lead = part[: len(part) - len(part.lstrip())].encode()
    trail = part[len(part.rstrip()) :].encode()
    begin = text.find(core, position, position + len(lead) + len(core))
    if begin < 0 or not lead.endswith(text[position:begin]):
        return None
    end = text.find(following, begin + len(core), begin + len(core) + len(trail) + len(following))
    if end < 0 or not trail.startswith(text[begin + len(core) : end]):
        return None
    return len(lead) - (begin - position), end - position


def _with_markup(runs: list[ContentSpan], messages: Messages, text: bytes) -> list[ContentSpan]:
    """Spans grown over the markup at both ends of their content, where the text shows it."""
    last = {run.message: index for index, run in enumerate(runs)}
    first = {run.message: index for index, run in reversed(list(enumerate(runs)))}
    for number in first:
        content = messages[number]["content"].encode()
        run = runs[first[number]]
        head = content[: run.start].lstrip()
        if head and text.endswith(head, 0, run.text):
            runs[first[number]] = run = ContentSpan(
                number, run.start - len(head), run.text - len(head), run.length + len(head)
            )
        run = runs[last[number]]
        tail = content[run.start + run.length :].rstrip()
        if tail and text.startswith(tail, run.text + run.length):
            runs[last[number]] = run._replace(length=run.length + len(tail))
    return runs

"""One tokenizer's view of a batch of chat rows: ids, what may be masked, and where each token lies in the contents.

A batch is one long line of tokens: work on tokens is numpy over the whole batch, and Python only loops over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.alignment.chat import ChatTemplate, ContentSpan, Messages, Refusal
from pipeline.alignment.chunks import Intervals
from pipeline.alignment.control_tokens import ControlTokens
from pipeline.alignment.formats import Message
from pipeline.alignment.spans import Spans, spans_from_offsets
from pipeline.alignment.vocabulary import token_bytes
from pipeline.config.recipe import Maskable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_REASON = 100


class Conversations:
    """A batch of rows, and a byte position for all of their contents that every tokenizer shares.

    Attributes:
        targets: for every row, the numbers of the messages that may be learnt: answers without weight 0, all or the last.
        starts: for every row, the position of each message's content; one unused position follows each content, so that
            no chunk spans two messages.
        size: number of positions.
    """

    def __init__(self, rows: Sequence[Messages], maskable: Maskable = "all"):
        self.rows = rows
        self.targets = [_targets(messages)[-1 if maskable == "last" else 0 :] for messages in rows]
        sizes = (len(message["content"].encode()) + 1 for messages in rows for message in messages)
        flat = accumulate(sizes, initial=0)
        self.starts = [[next(flat) for _ in messages] for messages in rows]
        self.size = next(flat)


def _targets(messages: Messages) -> list[int]:
    answers = (number for number, message in enumerate(messages) if message["role"] == "assistant")
    return [number for number in answers if messages[number].get("weight") != 0]


@dataclass(frozen=True)
class SideBatch:
    """A batch as one tokenizer sees it; every row ends with its last maskable token, or is cut at the longest length."""

    ids: np.ndarray
    """int32 [tokens]"""
    row: np.ndarray
    """int64 [tokens], ascending"""
    maskable: np.ndarray
    """bool [tokens]: the targets' contents and their end-of-turn tokens"""
    contents: Intervals
    """tokens as positions of `Conversations`; -1 for tokens that are not wholly and faithfully in one content"""
    straddling: np.ndarray
    """bool [tokens]: partly in a content"""
    lost: np.ndarray
    """int64 [rows]: tokens that could be learnt, but lie behind the longest length"""
    problems: list[str | None]
    """for every row, why it cannot be used"""

    @property
    def cut(self) -> np.ndarray:
        """bool [rows]: whether the row goes on behind the longest length."""
        return self.lost > 0

    def take(self, kept: np.ndarray) -> SideBatch:
        """The tokens where `kept`, bool [tokens], holds."""
        contents = Intervals(self.contents.begin[kept], self.contents.end[kept])
        columns = {name: getattr(self, name)[kept] for name in ("ids", "row", "maskable", "straddling")}
        return replace(self, **columns, contents=contents)


class _Row(NamedTuple):
    """What the loop over rows finds out about one."""

    ids: list[int]
    runs: list[ContentSpan]
    turns: list[tuple[int, int]]
    """byte positions of the targets' contents in the text"""
    size: int
    """bytes of the text"""
    spans: Spans | None
    """None where the tokens respell the text"""


_NO_ROW = _Row([], [], [], 0, None)


class Side:
    """A tokenizer with its byte table, its chat template and the longest length of a row.

    Attributes:
        spelled: the bytes of every token, by id; None for a tokenizer whose tokens are not made of bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int):
        self._template = ChatTemplate(tokenizer)
        self._control_tokens = ControlTokens(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._length = length
        size = max(tokenizer.get_vocab().values()) + 1
        try:
            self.spelled: list[bytes] | None = token_bytes(tokenizer)
        except ValueError:
            self.spelled = None
        table = self.spelled or [b""] * size
        self._lengths = np.array([len(token) for token in table], np.int64)
        self._added = np.isin(np.arange(size), list(tokenizer.added_tokens_decoder))
        self._control = np.isin(np.arange(size), list(self._control_tokens.ids))
        self._blank = np.array([token.isspace() for token in table]) & ~self._added

    def encode(self, batch: Conversations) -> SideBatch:
        """The batch as this tokenizer sees it; rows that its template refuses or rewrites have no tokens."""
        texts = self._template.render(batch.rows)
        shown = ["" if isinstance(text, Refusal) else text for text in texts]
        encodings = self._backend.encode_batch_fast(shown, add_special_tokens=False)
        rows: list[_Row] = []
        problems: list[str | None] = []
        for messages, targets, text, encoding in zip(batch.rows, batch.targets, texts, encodings, strict=True):
            row = self._row(messages, targets, text, encoding.ids)
            rows.append(_NO_ROW if isinstance(row, str) else row)
            problems.append(row if isinstance(row, str) else None)
        return self._assemble(batch, rows, problems)

    def _row(self, messages: Messages, targets: list[int], text: str | Refusal, ids: list[int]) -> _Row | str:
        """The row, or why there is none."""
        if isinstance(text, Refusal):
            return f"refused_by_template ({text.words[:_LONGEST_REASON]})"
        raw = text.encode()
        runs = self._template.locate(messages, raw)
        if runs is None:
            return "rewritten_by_template"
        filled = sum(bool(message["content"].strip()) for message in messages)
        if len({run.message for run in runs}) < filled and self._template.leaves_out(messages):
            return "left_out_by_template"
        offsets = None
        if any(self._control_tokens.spelled_in(message["content"]) for message in messages):
            hidden = self._with_hidden_tokens(messages)
            if self._control_tokens.show(hidden) != text:  # the template reads the letters
                return "control_token_in_content"
            ids, offsets = self._control_tokens.encode_with_offsets(hidden)
        spans = None
        pieces = self.spelled and list(map(self.spelled.__getitem__, ids))
        if pieces is None or b"".join(pieces) != raw:
            offsets = offsets or self._backend.encode(text, add_special_tokens=False).offsets
            spans = spans_from_offsets(pieces, text, offsets)
        return _Row(ids, runs, _turns(targets, runs), len(raw), spans)

    def _with_hidden_tokens(self, messages: Messages) -> str:
        """The row's text, in which stand-ins hide the control tokens that contents spell; "" where there is none."""
        hidden: list[Message] = [
            {**message, "content": self._control_tokens.hide(message["content"])} for message in messages
        ]
        (text,) = self._template.render([hidden])
        return "" if isinstance(text, Refusal) else text

    def _assemble(self, batch: Conversations, rows: list[_Row], problems: list[str | None]) -> SideBatch:
        # Texts lie one behind the other, an unused position after each.
        text_starts = np.fromiter(accumulate((row.size + 1 for row in rows), initial=0), np.int64)
        counts = np.array([len(row.ids) for row in rows], np.int64)
        ids = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32, counts.sum())
        spans = self._spans(ids, counts, text_starts, rows)

        row = np.repeat(np.arange(len(rows)), counts)
        runs = [
            (batch.starts[n][run.message] + run.start, text_starts[n] + run.text, run.length)
            for n, of_row in enumerate(rows)
            for run in of_row.runs
        ]
        turns = [(n, text_starts[n] + a, text_starts[n] + b) for n, of_row in enumerate(rows) for a, b in of_row.turns]
        maskable = self._maskable(ids, row, spans, _table(turns))
        fits = np.arange(len(ids)) - (np.cumsum(counts) - counts)[row] < self._length
        lost = np.bincount(row[maskable & ~fits], minlength=len(rows))
        # What a template prints after the last answer is never generated, and in xt it would show where the answer ends.
        last = np.full(len(rows), -1)
        np.maximum.at(last, row[maskable & fits], np.flatnonzero(maskable & fits))
        kept = np.arange(len(ids)) <= last[row]
        ids, row, maskable, spans = ids[kept], row[kept], maskable[kept], Spans(*(column[kept] for column in spans))
        contents, straddling = _in_contents(spans, _table(runs))
        for n in np.unique(row[self._control[ids] & contents.inside]):  # it would end a turn, or forge one
            problems[n] = "control_token_in_content"
        return SideBatch(ids, row, maskable, contents, straddling, lost, problems)

    def _spans(self, ids: np.ndarray, counts: np.ndarray, text_starts: np.ndarray, rows: list[_Row]) -> Spans:
        """Spans in the line of all texts."""
        lengths = self._lengths[ids]
        total = np.append(0, np.cumsum(lengths))
        first = np.cumsum(counts) - counts
        begin = total[:-1] + np.repeat(text_starts[:-1] - total[first], counts)
        spans = Spans(begin, begin + lengths, np.ones(len(ids), bool))
        for n, row in enumerate(rows):
            if row.spans is not None:
                here = slice(first[n], first[n] + counts[n])
                spans.begin[here] = row.spans.begin + text_starts[n]
                spans.end[here] = row.spans.end + text_starts[n]
                spans.faithful[here] = row.spans.faithful
        return spans

    def _maskable(self, ids: np.ndarray, row: np.ndarray, spans: Spans, turns: np.ndarray) -> np.ndarray:
        turn_row, turn_begin, turn_end = turns.T
        turn = np.searchsorted(turn_begin, spans.begin, side="right") - 1
        maskable = (turn >= 0) & (spans.end <= np.append(turn_end, 0)[turn])
        # The end of a turn is an added token; before it the template may put blanks, which the answer's last token may
        # have taken in (`.\n`): all of these the model has to write.
        after = np.searchsorted(spans.end, turn_end, side="right")
        for n, first in enumerate(after):
            last = first + int(first < len(ids) and spans.begin[first] < turn_end[n])
            while last < len(ids) and row[last] == turn_row[n] and self._blank[ids[last]]:
                last += 1
            ends = last < len(ids) and row[last] == turn_row[n] and self._added[ids[last]]
            if ends:
                maskable[first : last + 1] = spans.begin[first : last + 1] >= turn_begin[n]
        return maskable


def _turns(targets: list[int], runs: list[ContentSpan]) -> list[tuple[int, int]]:
    turns: dict[int, tuple[int, int]] = {}
    for run in runs:
        if run.message in targets:
            begin, _ = turns.get(run.message, (run.text, 0))
            turns[run.message] = begin, run.text + run.length
    return list(turns.values())


def _table(triples: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(triples, np.int64).reshape(-1, 3)


def _in_contents(spans: Spans, runs: np.ndarray) -> tuple[Intervals, np.ndarray]:
    """Tokens in positions of the contents, and which straddle. Runs are (content, text, length), in order."""
    if not len(runs):
        return Intervals(np.full(len(spans.end), -1), np.full(len(spans.end), -1)), np.zeros(len(spans.end), bool)
    content, text, length = runs.T
    run = np.maximum(np.searchsorted(text, np.maximum(spans.begin, spans.end - 1), side="right") - 1, 0)
    run_begin, run_end = text[run], (text + length)[run]
    inside = (spans.begin >= run_begin) & (spans.end <= run_end)
    touching = (spans.end > run_begin) & (spans.begin < run_end) & (spans.end > spans.begin)
    shift = (content - text)[run]
    placed = inside & spans.faithful
    begin, end = (np.where(placed, column + shift, -1) for column in (spans.begin, spans.end))
    return Intervals(begin, end), touching & ~inside

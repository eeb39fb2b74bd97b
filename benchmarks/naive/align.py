"""Alignment written plainly, with the work of the published data map and collator: the yardstick, not a part of the
pipeline.

For every message both sequences are decoded again, its content is searched (the first match wins), the decoded text is
tokenized again for its offsets; prompts are rendered and tokenized by themselves to know what may be masked. Chunks come
from a walk over tokens and go into dense matrices. Where contents repeat, it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

Messages = Sequence[dict[str, str]]
Span = tuple[int, int]


def align(messages: Messages, sides: Sequence[PreTrainedTokenizerFast]) -> int:
    """Aligns one row of two sides; the number of its chunks."""
    messages = list(messages)
    ids = [_tokens(tokenizer, messages) for tokenizer in sides]
    prompts = [len(_tokens(tokenizer, messages[:-1], add_generation_prompt=True)) for tokenizer in sides]
    labels = [
        np.where(np.arange(len(side_ids)) < prompt, -100, side_ids)
        for side_ids, prompt in zip(ids, prompts, strict=True)
    ]
    chunks: list[list[Span]] = []
    for message in messages:
        spans = [_span(tokenizer, side_ids, message["content"]) for tokenizer, side_ids in zip(sides, ids, strict=True)]
        if None not in spans and len({_text(*side) for side in zip(sides, ids, spans, strict=True)}) == 1:
            chunks += _walk(sides, ids, spans)
    for side, side_ids in enumerate(labels):
        matrix = np.zeros((len(side_ids), len(chunks)), bool)
        for number, chunk in enumerate(chunks):
            start, stop = chunk[side]
            matrix[start:stop, number] = True
    return len(chunks)


def _tokens(tokenizer: PreTrainedTokenizerFast, messages: Messages, **options: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False, **options)
    return tokenizer(text, add_special_tokens=False).input_ids


def _span(tokenizer: PreTrainedTokenizerFast, ids: list[int], content: str) -> Span | None:
    """First and one past the last token of a content."""
    text = tokenizer.decode(ids)
    start = text.find(content)
    if start < 0:
        return None
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    touched = [index for index, (a, b) in enumerate(offsets) if a < start + len(content) and b > start]
    return touched[0], touched[-1] + 1


def _text(tokenizer: PreTrainedTokenizerFast, ids: list[int], span: Span) -> str:
    return tokenizer.decode(ids[slice(*span)]).strip()


def _walk(
    sides: Sequence[PreTrainedTokenizerFast], ids: Sequence[list[int]], spans: Sequence[Span]
) -> list[list[Span]]:
    """Both sides' tokens, one after the other, to the next place where their texts are equally long."""
    ends = []
    for tokenizer, side_ids, (start, stop) in zip(sides, ids, spans, strict=True):
        pieces = tokenizer.convert_ids_to_tokens(side_ids[start:stop])
        # a character of the byte-level alphabet is a byte
        ends.append([0, *np.cumsum([len(piece) for piece in pieces]).tolist()])
    chunks, last = [], [0, 0]
    i = j = 1
    while i < len(ends[0]) and j < len(ends[1]):
        if ends[0][i] < ends[1][j]:
            i += 1
        elif ends[0][i] > ends[1][j]:
            j += 1
        else:
            chunks.append([(spans[0][0] + last[0], spans[0][0] + i), (spans[1][0] + last[1], spans[1][0] + j)])
            last = [i, j]
            i, j = i + 1, j + 1
    return chunks

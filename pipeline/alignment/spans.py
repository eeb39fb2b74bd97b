"""Where every token of an encoded text lies in the text's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spans(NamedTuple):
    """Byte intervals of the tokens of a text, in order and without overlap.

    begin, end: int64 [tokens]. faithful: bool [tokens], False where a token does not spell the bytes it stands for
    (the tokenizer normalised them); such tokens are placed, but never part of a chunk.
    """

    begin: np.ndarray
    end: np.ndarray
    faithful: np.ndarray


def spans_from_offsets(pieces: Sequence[bytes] | None, text: str, offsets: Sequence[tuple[int, int]]) -> Spans:
    """Spans from the tokenizer's character offsets, where tokens do not respell the text.

    Tokens whose offsets overlap (bytes of one character) form a group. A group that spells its part of the text, but
    for one leading space (SentencePiece's dummy prefix), is cut at its tokens' lengths. Any other group is placed as a
    whole on its first token and is not faithful. Without pieces (a vocabulary of unknown kind) every group is placed
    so and taken to be faithful.
    """
    if not offsets:
        return Spans(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
    at = _byte_positions(text)
    starts, ends = at[np.array(offsets, np.int64)].T
    reach = np.maximum.accumulate(ends)
    first = np.flatnonzero(np.append(True, starts[1:] >= reach[:-1]))
    group = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(starts))))
    begin, end = starts[first], reach[np.append(first[1:], len(starts)) - 1]

    lengths = np.zeros(len(starts), np.int64)
    lengths[first] = end - begin
    faithful = np.ones(len(first), bool)
    if pieces is not None:
        spelled, spelled_lengths = _without_added_space(pieces, first, end - begin)
        faithful = _spells(spelled, group.repeat(spelled_lengths), begin, end, text.encode())
        lengths = np.where(faithful[group], spelled_lengths, lengths)
    total = np.cumsum(lengths)
    token_end = begin[group] + total - (total - lengths)[first][group]
    return Spans(token_end - lengths, token_end, faithful[group])


def _lengths(pieces: Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


def _byte_positions(text: str) -> np.ndarray:
    """Byte position of every character and of the end, int64 [characters + 1]."""
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    width = 1 + (code > 0x7F).astype(np.int64) + (code > 0x7FF) + (code > 0xFFFF)
    return np.append(0, np.cumsum(width))


def _without_added_space(pieces: Sequence[bytes], first: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All bytes, uint8, and lengths of the pieces, less the leading space of groups that are one byte too long."""
    spelled, lengths = np.frombuffer(b"".join(pieces), np.uint8), _lengths(pieces)
    starts_with_space = np.fromiter((pieces[i][:1] == b" " for i in first), bool, len(first))
    added = first[starts_with_space & (np.add.reduceat(lengths, first) == size + 1)]
    spelled = np.delete(spelled, (np.cumsum(lengths) - lengths)[added])
    lengths[added] -= 1
    return spelled, lengths


def _spells(spelled: np.ndarray, group: np.ndarray, begin: np.ndarray, end: np.ndarray, text: bytes) -> np.ndarray:
    """Whether each group's bytes are text[begin:end], bool [groups]; `group` names the group of every spelled byte."""
    length = np.bincount(group, minlength=len(begin))
    shift = begin - (np.cumsum(length) - length)
    source = np.minimum(np.arange(len(spelled)) + shift[group], len(text) - 1)
    wrong = spelled != np.frombuffer(text, np.uint8)[source]
    return (length == end - begin) & (np.bincount(group, weights=wrong, minlength=len(begin)) == 0)

"""Arithmetic word problems: two-digit additions told in four ways, as chat rows, and how their answers go wrong.

The operand pairs are split once, by a fixed permutation of the unordered pairs {a, b}: no pair of the validation or
test split, in either order, ever occurs in training. Every function is a pure function of its arguments.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "test"]
Pair = tuple[int, int]

OPERANDS = range(10, 100)
HELD_OUT = {"validation": 256, "test": 500}
SPLIT_SEED = 2026

THINGS = ["apples", "marbles", "stamps", "books", "cards", "shells", "pencils", "coins"]


@dataclass(frozen=True)
class Wording:
    """A question and the sentence that answers it; the sum stands once in the answer."""

    question: str
    answer: str


WORDINGS = [
    Wording("What do you get from {a} plus {b}?", "{total} is the sum."),
    Wording("How many {things} are {a} plus {b}?", "{total} {things} in all."),
    Wording("Put {things} together: {a} plus {b}?", "{total} {things} together."),
    Wording("Two boxes of {things} hold {a} plus {b}?", "{total} {things} in both boxes."),
]


def split_pairs() -> dict[Split, list[Pair]]:
    """Unordered operand pairs (a <= b) of every split; the three lists are disjoint and cover all pairs."""
    pairs = [(a, b) for a in OPERANDS for b in OPERANDS if a <= b]
    random.Random(SPLIT_SEED).shuffle(pairs)
    validation, test = HELD_OUT["validation"], HELD_OUT["test"]
    return {
        "validation": pairs[:validation],
        "test": pairs[validation : validation + test],
        "train": pairs[validation + test :],
    }


def chat_rows(
    split: Split, count: int, seed: int, wrong_share: float = 0.0, no_carry_share: float = 0.0, smallest_sum: int = 0
) -> list[dict[str, Any]]:
    """`count` rows {"messages", "answer"}; each pair (of at least `smallest_sum`) occurs once before any occurs twice.

    `answer` is the true sum in every row. In `round(wrong_share * count)` rows, drawn by the seed, the assistant's
    sentence states another number; in `no_carry_share` of the rows it is wrong with a system (`drop_carries`).
    """
    rng = random.Random(seed)
    pool = [pair for pair in split_pairs()[split] if sum(pair) >= smallest_sum]
    pairs: list[Pair] = []
    while len(pairs) < count:
        pairs += rng.sample(pool, k=min(count - len(pairs), len(pool)))
    wrong = set(rng.sample(range(count), round(wrong_share * count)))
    rows = [_row(pair, rng, is_wrong=index in wrong) for index, pair in enumerate(pairs)]
    drop_carries(rows, no_carry_share, seed)
    return rows


def drop_carries(rows: Sequence[dict[str, Any]], share: float, seed: int) -> None:
    """Takes the carry into the tens from the answers of `round(share * len(rows))` rows, in place.

    An error with a system, unlike the random digit of `wrong_share`: where it can be made, it is more frequent than the
    truth from a share of 0.22 on.
    """
    can = [row for row in rows if carries(row)]
    for row in random.Random(seed).sample(can, round(share * len(rows))):
        answer = row["messages"][1]
        answer["content"] = answer["content"].replace(row["answer"], str(int(row["answer"]) - 10))


def carries(row: dict[str, Any]) -> bool:
    """Whether the units carry, and the answer keeps its three digits without the carry."""
    units = [int(n) % 10 for n in re.findall(r"\d+", row["messages"][0]["content"])]
    return sum(units) >= 10 and int(row["answer"]) >= 110


def wrong_number(number: int, rng: random.Random) -> int:
    """A plausible other number: one digit changed, the number of digits kept."""
    digits = list(str(number))
    position = rng.randrange(len(digits))
    choices = set("123456789" if position == 0 else "0123456789") - {digits[position]}
    digits[position] = rng.choice(sorted(choices))
    return int("".join(digits))


def _row(pair: Pair, rng: random.Random, *, is_wrong: bool) -> dict[str, Any]:
    a, b = rng.sample(pair, 2)
    wording = rng.choice(WORDINGS)
    total = wrong_number(a + b, rng) if is_wrong else a + b
    words = {"a": a, "b": b, "total": total, "things": rng.choice(THINGS)}
    messages = [
        {"role": "user", "content": wording.question.format(**words)},
        {"role": "assistant", "content": wording.answer.format(**words)},
    ]
    return {"messages": messages, "answer": str(a + b)}

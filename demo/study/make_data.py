"""Writes the study's chat data, data/study/*.jsonl: sums of three digits in one wording, so that a run takes seconds.

`python demo/study/make_data.py`; the same bytes every time. The test problems are those of the demo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from demo.problems import carries, chat_rows, drop_carries

DATA = Path("data/study")

# `count` is of all four wordings, of which about a quarter is kept
FILES = {
    "clean": {"split": "train", "count": 20_000, "seed": 1},
    "carry": {"split": "train", "count": 7_992, "seed": 2, "no_carry_share": 0.3},
    "right": {"split": "train", "count": 7_992, "seed": 2},
    "noisy": {"split": "train", "count": 7_992, "seed": 2, "wrong_share": 0.3},
    "scarce": {"split": "train", "count": 1_998, "seed": 2},
    "scarce_carry": {"split": "train", "count": 1_998, "seed": 2, "no_carry_share": 0.3},
    "validation": {"split": "validation", "count": 256, "seed": 3},
    "test": {"split": "test", "count": 1_000, "seed": 4},
}


def rows_of(*, no_carry_share: float = 0.0, **settings: Any) -> list[dict[str, Any]]:
    """The rows of the first wording, "What do you get from {a} plus {b}?".

    In `no_carry_share` of them the answer lacks the carry into the tens (`drop_carries`).
    """
    rows = [r for r in chat_rows(**settings, smallest_sum=100) if r["messages"][0]["content"].startswith("What")]
    drop_carries(rows, no_carry_share, settings["seed"])
    return rows


def write_data(folder: Path) -> None:
    """Writes one JSONL file for every entry of FILES."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in FILES.items():
        rows = rows_of(**settings)
        wrong = sum(r["answer"] != r["messages"][1]["content"].split()[0] for r in rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        share = sum(map(carries, rows)) / len(rows)
        print(f"{folder / name}.jsonl: {len(rows)} rows, {wrong} with a wrong answer, a carry to drop in {share:.0%}")


if __name__ == "__main__":
    write_data(DATA)

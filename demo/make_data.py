"""Writes the demo's chat data, demo/data/*.jsonl: a few seconds, the same bytes every time.

`python demo/make_data.py`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from demo.problems import chat_rows

DATA = Path(__file__).parent / "data"

# The teacher learns all sums. The student's are of three digits: what it has learnt, and what it then goes on with, of which
# 30% lack the carry, as fine-tuning data are often wrong with a system.
FILES = {
    "teacher_train": {"split": "train", "count": 20_000, "seed": 1},
    "student_clean": {"split": "train", "count": 12_000, "seed": 1, "smallest_sum": 100},
    "student_train": {"split": "train", "count": 2_000, "seed": 2, "no_carry_share": 0.3, "smallest_sum": 100},
    "validation": {"split": "validation", "count": 150, "seed": 3, "smallest_sum": 100},
    "test": {"split": "test", "count": 300, "seed": 4, "smallest_sum": 100},
}


def write_data(folder: Path) -> None:
    """Writes one JSONL file for every entry of FILES."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in FILES.items():
        lines = [json.dumps(row) + "\n" for row in chat_rows(**settings)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=DATA, help="where the files go")
    write_data(arguments.parse_args().folder)

"""The real text of demo/text: rows out of source files, splits by file, and nats per byte."""

from __future__ import annotations

import ast

import pytest

from demo.text.make_data import LONGEST, SHARES, rows_of, split_of, splits
from pipeline.evaluation.tasks.utils import nats_per_byte

SOURCE = '''
class Queue(list):
    """First in, first out."""

    def take(self, count=1):
        """Take the oldest."""
        # a comment
        return self[:count]

    def bare(self):
        return None
'''


def test_rows_are_docstrings_and_code():
    assert list(rows_of(ast.parse(SOURCE))) == [
        ("class Queue(list):", '"""First in, first out."""'),
        ("def take(self, count=1):", '"""Take the oldest."""\nreturn self[:count]'),
    ]


def test_a_file_is_in_one_split_and_no_answer_twice():
    names = [f"file{i}.py" for i in range(400)]
    shares = {split: sum(split_of(name) == split for name in names) / 400 for split in SHARES}
    assert all(0.02 < share < 0.09 for share in shares.values()), shares
    long = f'def f():\n    """{"x" * (LONGEST + 1)}"""'
    made = splits((name, ast.parse(text)) for name, text in [("a.py", SOURCE), ("b.py", SOURCE), ("c.py", long)])
    assert {name: len(rows) for name, rows in made.items() if rows} == {split_of("a.py"): 2}


def test_nats_per_byte():
    doc = {"messages": [{"content": "?"}, {"content": "né"}]}
    assert nats_per_byte(doc, [(-6.0, False)]) == {"nats_per_byte": pytest.approx(2.0)}

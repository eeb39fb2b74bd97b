"""Chat rows and a recipe for tests of the align stage; conftest.py has the fixtures that use them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets

from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.files import read_json

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} plus 12?"},
            {"role": "assistant", "content": f"It is {n}."},
        ]
    }
    for n in range(40)
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_of(align_recipe: Path, *overrides: str) -> Recipe:
    return parse(parser(""), ["--recipe", str(align_recipe), *overrides])[0]


def table(folder: Path, split: str = "train") -> datasets.Dataset:
    """The rows of a dataset that `align` wrote."""
    shards = [shard for shard in read_json(folder / "manifest.json")["shards"] if shard["split"] == split]
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(folder / s["file"])) for s in shards])

"""Chat rows and a recipe for tests of the align stage; conftest.py has the fixtures that use them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.files import read_json

TURNS = [(f"What is {n} plus 12?", f"It is {n}.") for n in range(40)]
ROWS = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in TURNS]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_hub(folder: Path, configurations: dict[str, dict[str, list]]) -> Path:
    """A dataset as it lies on the hub: configurations of splits of rows, in Parquet."""
    listed = ""
    for name, splits in configurations.items():
        listed += f"- config_name: {name}\n  data_files:\n"
        for split, rows in splits.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / name / f"{split}.parquet")
            listed += f"  - split: {split}\n    path: {name}/{split}.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    return folder


def opencoder_rows(name: str, count: int = 20) -> list[dict[str, str]]:
    """As OpenCoder's: a question, an answer in one of two languages, and a column of this configuration alone."""
    return [
        {"instruction": f"write {n}", "output": f"{name} {n} in {'python' if n % 2 else 'C'}", f"of_{name}": "x"}
        for n in range(count)
    ]


def recipe_of(align_recipe: Path, *overrides: str) -> Recipe:
    return parse(parser(""), ["--recipe", str(align_recipe), *overrides])[0]


def table(folder: Path, split: str = "train") -> datasets.Dataset:
    """The rows of a dataset that `align` wrote."""
    shards = [shard for shard in read_json(folder / "manifest.json")["shards"] if shard["split"] == split]
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(folder / s["file"])) for s in shards])

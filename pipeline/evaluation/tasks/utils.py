"""Data and metrics of the tasks in this folder."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from pipeline.recipe import BadInput

FENCED = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)


def chat_rows(path: str, **_metadata: Any) -> dict[str, Dataset]:
    """A local chat JSONL as the test split, read afresh: no cache that could outlive a change of the file."""
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"no file {path}: make the data of this task first (see the README)")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {"test": Dataset.from_list(rows)}


def reference_solution(doc: dict[str, Any]) -> str:
    return doc["messages"][-1]["content"]


def code_similarity(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Share of characters in matching blocks of response and reference (difflib's ratio), and whether all match."""
    response, reference = code(results[0]), code(reference_solution(doc))
    ratio = difflib.SequenceMatcher(None, response, reference, autojunk=False).ratio()
    return {"edit_similarity": ratio, "exact_match": float(response == reference)}


def code(text: str) -> str:
    """The first fenced block, or the whole text without one; trailing blanks do not count."""
    fenced = FENCED.search(text)
    return "\n".join(line.rstrip() for line in (fenced[1] if fenced else text).strip().splitlines())

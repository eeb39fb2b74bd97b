"""Code data from what every Python brings: docstring -> function rows of the standard library's own source.

Writes data/code/{train,validation}.jsonl. HumanEval is held out: a function that shares its name, its body or
ten words in a row with one of its problems is left out. `python demo/code/harvest.py`
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import write_text
from pipeline.evaluation.human_eval import problems

FOLDER = Path("data/code")
REQUEST = "Complete this function:\n\n"
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
MAX_CHARACTERS = 1_500  # about 400 tokens: request and response fit the student's 512 in most rows
VALIDATION_EVERY = 20
SHARED_WORDS = 10  # a run of this many common words counts as overlap


@dataclass(frozen=True)
class Function:
    """A module-level function: where it stands, its head (signature and docstring), and all of it."""

    path: str
    name: str
    head: str
    source: str

    @property
    def row(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": REQUEST + self.head}, {"role": "assistant", "content": self.source}]
        return {"messages": messages, "path": self.path, "name": self.name}


def functions(path: str, text: str) -> Iterator[Function]:
    """Module-level functions of a file that have a docstring and a body below it."""
    lines = text.splitlines()
    for node in ast.parse(text).body:
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not is_function or not ast.get_docstring(node) or len(node.body) < 2:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        head_end = node.body[0].end_lineno
        if node.body[1].lineno > head_end:
            head, source = ("\n".join(lines[first:end]) for end in (head_end, node.end_lineno))
            yield Function(path, node.name, head, source)


def standard_library(root: Path) -> Iterator[Function]:
    """Functions of the files below `root`; tests, installed packages and files that do not parse are left out."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            try:
                with tokenize.open(path) as file, warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                    yield from functions(relative.as_posix(), file.read())
            except (SyntaxError, UnicodeDecodeError):
                continue


def normalised_body(source: str, name: str) -> str:
    """The body of function `name` without docstrings, comments, formatting and its own name."""
    definitions = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == name]
    body = definitions[0].body
    body = body[1:] if ast.get_docstring(definitions[0]) else body
    return re.sub(rf"\b{re.escape(name)}\b", "_", "\n".join(ast.unparse(statement) for statement in body))


def word_runs(source: str) -> set[tuple[str, ...]]:
    """All runs of SHARED_WORDS words, lower case, punctuation left out."""
    words = re.findall(r"\w+", source.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


@dataclass
class HeldOut:
    """What no training row may repeat."""

    names: set[str]
    bodies: set[str]
    runs: set[tuple[str, ...]]

    @classmethod
    def of(cls, held_out: Iterable[dict[str, Any]]) -> HeldOut:
        """From HumanEval problems."""
        sources = {problem["entry_point"]: problem["prompt"] + problem["canonical_solution"] for problem in held_out}
        return cls(
            names=set(sources),
            bodies={normalised_body(source, name) for name, source in sources.items()},
            runs={run for source in sources.values() for run in word_runs(source)},
        )


def select(
    candidates: Iterable[Function], held_out: HeldOut, longest: int = MAX_CHARACTERS
) -> tuple[list[Function], Counter[str]]:
    """Functions of at most `longest` characters to keep, and how many were kept or dropped for which reason."""
    kept, counts, seen = [], Counter(), set()
    for function in candidates:
        reason = "too long" if len(function.source) > longest else reason_to_drop(function, held_out, seen)
        if reason is None:
            kept.append(function)
        counts[reason or "kept"] += 1
    return kept, counts


def reason_to_drop(function: Function, held_out: HeldOut, seen: set[str]) -> str | None:
    """Why a function is left out, None to keep it; its body is added to those seen."""
    if function.name in held_out.names:
        return "name in HumanEval"
    body = normalised_body(function.source, function.name)
    if body in held_out.bodies:
        return "body in HumanEval"
    if not held_out.runs.isdisjoint(word_runs(function.source)):
        return "words in HumanEval"
    if body in seen:
        return "seen before"
    seen.add(body)
    return None


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSONL file."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Harvests, deduplicates and writes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=FOLDER, help="where the two files go")
    arguments.add_argument("--longest", type=int, default=MAX_CHARACTERS, help="characters of a function")
    options = arguments.parse_args()
    folder, held_out = options.folder, problems()
    root = Path(sysconfig.get_path("stdlib"))
    kept, counts = select(standard_library(root), HeldOut.of(held_out), options.longest)
    if not kept:
        raise BadInput(f"no function with a docstring below {root}: this Python has no source of its standard library")
    print(", ".join(f"{reason}: {count}" for reason, count in counts.most_common()))
    rows = {
        "train": [f.row for i, f in enumerate(kept) if i % VALIDATION_EVERY],
        "validation": [f.row for i, f in enumerate(kept) if i % VALIDATION_EVERY == 0],
    }
    for name, split in rows.items():
        write_rows(folder / f"{name}.jsonl", split)
        print(f"{folder / name}.jsonl: {len(split)} rows")


if __name__ == "__main__":
    sys.exit(exit_code("harvest", main))

"""Whether two models differ: paired, on the problems that both were asked.

`python pipeline/evaluate.py compare A B [C ...] [--output FILE.json]`. Each is a run directory (its newest evaluated step), a
folder under its evaluation/, or several of those joined by commas: the same model under other seeds, averaged a problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import BadInput
from pipeline.core.files import read_json, read_json_lines, write_json
from pipeline.evaluation.statistics import bootstrap, holm, mcnemar, sign_flip

REAL = 0.05
SAMPLES = ".samples.jsonl"
MATTERS = (
    "preset_hash",
    "prompts_hash",
    "fewshot",
    "dtype",
    "limit",
)  # equal, or the comparison is of more than models

Record = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """One model's scores on one task."""

    metric: str
    by_problem: dict[Any, float]
    """Problem id -> score, averaged over seeds."""
    facts: Record
    """Of the first result: what MATTERS names."""

    @classmethod
    def of(cls, results: Sequence[tuple[Record, Sequence[Record]]]) -> Scored:
        """From (TASK.json, samples) of each seed."""
        first = results[0][0]
        metric = first["metric"]
        values: dict[Any, list[float]] = {}
        for _, rows in results:
            for row in rows:
                values.setdefault(row["id"], []).append(float(row[metric]))
        asked = {i: fmean(v) for i, v in values.items() if len(v) == len(results)}
        facts = {name: {**first.get("settings", {}), **first}.get(name) for name in MATTERS}
        return cls(metric, asked, facts)


@dataclass(frozen=True)
class Comparison:
    """Model b less model a on the `n` problems that both were asked."""

    task: str
    metric: str
    a: str
    b: str
    n: int
    value_a: float
    value_b: float
    difference: float
    low: float
    """95% interval of the difference, by bootstrap over problems."""
    high: float
    test: str
    p: float
    p_holm: float
    """Adjusted for all comparisons of the table."""
    differs_in: list[str]
    """Settings that differ, apart from the model."""

    @property
    def real(self) -> bool:
        return self.p_holm < REAL


def comparable(metric: str | None, rows: Sequence[Record]) -> bool:
    """Whether every problem has a number: not before programs are run, nor for perplexities."""
    return bool(rows) and all("id" in row and isinstance(row.get(metric), Real) for row in rows)


def compare(models: Mapping[str, Mapping[str, Scored]]) -> list[Comparison]:
    """All pairs of models on every task that both have: {model: {task: scores}}."""
    found = []
    for (a, of_a), (b, of_b) in combinations(models.items(), 2):
        for task in [task for task in of_a if task in of_b and of_a[task].metric == of_b[task].metric]:
            found.append(_pair(task, a, of_a[task], b, of_b[task]))
    adjusted = holm([c["p"] for c in found])
    return [Comparison(**c, p_holm=p) for c, p in zip(found, adjusted, strict=True)]


def _pair(task: str, a: str, of_a: Scored, b: str, of_b: Scored) -> Record:
    asked = [i for i in of_a.by_problem if i in of_b.by_problem]
    if not asked:
        raise BadInput(f"{task}: {a} and {b} have no problem in common; evaluate both with the same evaluation.limit")
    left, right = ([of.by_problem[i] for i in asked] for of in (of_a, of_b))
    differences = [y - x for x, y in zip(left, right, strict=True)]
    binary = all(value in (0, 1) for value in left + right)
    p = mcnemar(differences.count(-1), differences.count(1)) if binary else sign_flip(differences)
    low, high = bootstrap(differences)
    return {
        "task": task, "metric": of_a.metric, "a": a, "b": b, "n": len(asked),
        "value_a": fmean(left), "value_b": fmean(right), "difference": fmean(differences), "low": low, "high": high,
        "test": "exact McNemar" if binary else "sign flips", "p": p,
        "differs_in": [name for name in MATTERS if of_a.facts[name] != of_b.facts[name]],
    }  # fmt: skip


def read(name: str) -> dict[str, Scored]:
    """The scored tasks of one model. Raises BadInput where there are none."""
    folders = [_folder(Path(part)) for part in name.split(",")]
    tasks = [path.name.removesuffix(SAMPLES) for path in sorted(folders[0].glob(f"*{SAMPLES}"))]
    found = {}
    for task in tasks:
        results = [(read_json(f / f"{task}.json"), read_json_lines(f / f"{task}{SAMPLES}")) for f in folders]
        if any(score is None for score, _ in results):
            raise BadInput(f"{name}: not all of these have {task}.json")
        if all(comparable(score["metric"], rows) for score, rows in results):
            found[task] = Scored.of(results)
    if not found:
        raise BadInput(f"{name}: no scored task in {folders[0]}")
    return found


def _folder(path: Path) -> Path:
    if (path / "evaluation").is_dir():
        steps = sorted(p for p in (path / "evaluation").glob("step-*") if any(p.glob("*.json")))
        if not steps:
            raise BadInput(f"{path}/evaluation holds no scored step: run evaluate, or name a folder in it")
        return steps[-1]
    if not path.is_dir():
        raise BadInput(f"{path}: no such folder; give a run directory or a folder of its evaluation/")
    return path


def main(argv: Sequence[str]) -> None:
    """Prints the table; `--output` writes it as JSON, too."""
    p = argparse.ArgumentParser(prog="evaluate.py compare", description=__doc__.splitlines()[0])
    p.add_argument("models", nargs="+", help="run directory, folder of results, or several (seeds) joined by commas")
    p.add_argument("--output", type=Path, help="write the comparisons to this file, as JSON")
    flags = p.parse_args(argv)
    if len(flags.models) < 2:
        raise BadInput("compare: name at least two models")
    found = compare({name: read(name) for name in flags.models})
    if not found:
        raise BadInput(f"compare: {' and '.join(flags.models)} have no task and metric in common")
    Console().print(table(found))
    if flags.output:
        write_json(flags.output, [asdict(c) | {"real": c.real} for c in found])


HEADINGS = ("task", "models", "scores", "difference", "95% interval", "n", "p", "p (Holm)", "real?")


def table_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Cells under HEADINGS."""
    return [
        [
            f"{c.task} ({c.metric})",
            f"{c.b} - {c.a}",
            f"{c.value_b:.3f} - {c.value_a:.3f}",
            f"{c.difference:+.3f}",
            f"{c.low:+.3f} to {c.high:+.3f}",
            str(c.n),
            f"{c.p:.2g}",
            f"{c.p_holm:.2g}",
            ("yes" if c.real else "no") + (f", but {', '.join(c.differs_in)} differ" if c.differs_in else ""),
        ]
        for c in comparisons
    ]


def table(comparisons: Sequence[Comparison]) -> Table:
    """For the terminal."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=f"real: p adjusted for all rows is below {REAL}")
    for heading in HEADINGS:
        drawn.add_column(heading)
    for row in table_rows(comparisons):
        drawn.add_row(*row)
    return drawn

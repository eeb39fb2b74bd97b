"""Whether two models differ: paired, on the problems that both were asked.

`python pipeline/evaluate.py compare A B [C ...] [--output FILE.json]`. Each is a run directory (its newest evaluated step), a
folder under its evaluation/, or several of those joined by commas: the same model under other seeds, averaged per problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from numbers import Real
from pathlib import Path
from statistics import fmean

from rich import box
from rich.table import Table

from pipeline.core.errors import BadInput
from pipeline.core.files import write_json
from pipeline.core.terminal import Console
from pipeline.evaluation.results import SAMPLES, Sample, Score, read_samples, read_score
from pipeline.evaluation.statistics import bootstrap, holm, mcnemar, sign_flip

REAL = 0.05


@dataclass(frozen=True)
class Scored:
    """One model's scores on one task."""

    metric: str
    by_problem: Mapping[int | None, float]
    """Problem id -> score, averaged over seeds."""
    settings: Mapping[str, object]
    """Of the first result: what must be equal, or a comparison is of more than models."""

    @classmethod
    def of(cls, results: Sequence[tuple[Score, Sequence[Sample]]]) -> Scored:
        """From score and samples of each seed."""
        first = results[0][0]
        values: dict[int | None, list[float]] = {}
        for _, samples in results:
            for sample in samples:
                values.setdefault(sample.id, []).append(float(sample.value))
        asked = {i: fmean(v) for i, v in values.items() if len(v) == len(results)}
        used = first.provenance.settings if first.provenance else {}
        settings = {
            "preset_hash": first.provenance and first.provenance.preset_hash,
            "prompts_hash": first.prompts_hash,
            "fewshot": first.fewshot,
            **{name: used.get(name) for name in ("dtype", "limit")},
        }
        return cls(first.metric or "", asked, settings)


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


def comparable(samples: Sequence[Sample]) -> bool:
    """Whether every problem has a number: not before programs are run, nor for perplexities."""
    return bool(samples) and all(s.id is not None and isinstance(s.value, Real) for s in samples)


def compare(models: Mapping[str, Mapping[str, Scored]]) -> list[Comparison]:
    """All pairs of models on every task that both have: {model: {task: scores}}."""
    pairs = [
        _pair(task, a, of_a[task], b, of_b[task])
        for (a, of_a), (b, of_b) in combinations(models.items(), 2)
        for task in of_a
        if task in of_b and of_a[task].metric == of_b[task].metric
    ]
    adjusted = holm([pair.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]


def _pair(task: str, a: str, of_a: Scored, b: str, of_b: Scored) -> Comparison:
    """`p_holm` is p."""
    asked = [i for i in of_a.by_problem if i in of_b.by_problem]
    if not asked:
        raise BadInput(f"{task}: {a} and {b} have no problem in common; evaluate both with the same evaluation.limit")
    left, right = ([of.by_problem[i] for i in asked] for of in (of_a, of_b))
    differences = [y - x for x, y in zip(left, right, strict=True)]
    binary = all(value in (0, 1) for value in left + right)
    p = mcnemar(differences.count(-1), differences.count(1)) if binary else sign_flip(differences)
    low, high = bootstrap(differences)
    return Comparison(
        task=task,
        metric=of_a.metric,
        a=a,
        b=b,
        n=len(asked),
        value_a=fmean(left),
        value_b=fmean(right),
        difference=fmean(differences),
        low=low,
        high=high,
        test="exact McNemar" if binary else "sign flips",
        p=p,
        p_holm=p,
        differs_in=[name for name, value in of_a.settings.items() if value != of_b.settings[name]],
    )


def read(name: str) -> dict[str, Scored]:
    """The scored tasks of one model. Raises BadInput where there are none."""
    folders = [_folder(Path(part)) for part in name.split(",")]
    tasks = [path.name.removesuffix(SAMPLES) for path in sorted(folders[0].glob(f"*{SAMPLES}"))]
    scored = {}
    for task in tasks:
        scores = [score for folder in folders if (score := read_score(folder, task))]
        if len(scores) < len(folders):
            raise BadInput(f"{name}: not all of these have {task}.json")
        results = [(score, read_samples(folder, score)) for folder, score in zip(folders, scores, strict=True)]
        if all(comparable(samples) for _, samples in results):
            scored[task] = Scored.of(results)
    if not scored:
        raise BadInput(f"{name}: no scored task in {folders[0]}")
    return scored


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
    comparisons = compare({name: read(name) for name in flags.models})
    if not comparisons:
        raise BadInput(f"compare: {' and '.join(flags.models)} have no task and metric in common")
    Console().print(table(comparisons))
    if flags.output:
        write_json(flags.output, [asdict(c) | {"real": c.real} for c in comparisons])


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

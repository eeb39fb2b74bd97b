"""A study's results: what each run left, as one file, and as a table of scores with differences paired by seed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich import box
from rich.table import Table
from scipy import stats

from pipeline.core.files import read_json, write_text
from pipeline.core.terminal import Console
from pipeline.evaluation.results import Part
from pipeline.evaluation.statistics import holm, sign_flip
from pipeline.experiments.grid import START, Study
from pipeline.training.held_out import TIMESTEPS
from pipeline.training.teacher_probe import TeacherProbe, read_probes

_SAME = ("versions", "device", "commit", "world_size", "zero_stage")


@dataclass(frozen=True)
class TaskResult(Part):
    """One task's headline."""

    metric: str | None
    value: float
    n: int
    low: float | None
    high: float | None
    correct: str = ""
    """A character per problem, in the task's order: 1 right, 0 wrong, - for scores that are neither."""


@dataclass(frozen=True)
class Scores(Part):
    """One model on all tasks of a study."""

    score: float
    """Mean of the tasks' values."""
    tasks: Mapping[str, TaskResult]

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        tasks = {name: TaskResult.from_json(task) for name, task in entries["tasks"].items()}
        return super().from_json({**entries, "tasks": tasks})


@dataclass(frozen=True)
class RunResult(Scores):
    """result.json of one run."""

    variant: str
    seed: int
    kl: Mapping[str, list[float]]
    """Teacher -> KL(teacher || student) by t."""
    steps: int
    tokens: int
    seconds: float
    """Of training; `wall_seconds` of the whole run."""
    loss: float
    wall_seconds: float
    accuracy: Sequence[float] = ()
    """Share of masked held-out tokens whose truth the student ranks first, by t"""
    rounds: int = 1
    """of training; more than 1 for a start that was below the study's bar"""
    digest: str = ""
    """Of everything that the run was made from."""
    environment: Mapping[str, Any] | None = None
    """The run's environment.json; None in a study's results, which have each environment once."""


@dataclass(frozen=True)
class Results:
    """results.json of a study."""

    study: Mapping[str, Any]
    """The fields of `Study`."""
    environments: Sequence[Mapping[str, Any]]
    """Each that runs were made in: versions, device, commit."""
    teachers: Mapping[str, Scores]
    probe: Mapping[str, TeacherProbe]
    """What each teacher knows of held-out rows."""
    runs: Sequence[RunResult]
    """In the order of the variants, the start first."""

    def to_json(self) -> dict[str, Any]:
        probe = {name: {"t": known.t, **known.to_json()} for name, known in self.probe.items()}
        runs = [{k: v for k, v in asdict(run).items() if k != "environment"} for run in self.runs]
        return {**asdict(self), "probe": probe, "runs": runs}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Results:
        return cls(
            entries["study"],
            entries["environments"],
            {name: Scores.from_json(scores) for name, scores in entries["teachers"].items()},
            {name: TeacherProbe.from_json(known["t"], known) for name, known in entries["probe"].items()},
            [RunResult.from_json(run) for run in entries["runs"]],
        )

    def of(self, variant: str) -> list[RunResult]:
        """A variant's runs."""
        return [run for run in self.runs if run.variant == variant]

    def start(self) -> Line:
        """The students that all variants start from."""
        return lines(self.of(START), START)[0]

    def compared(self) -> list[Line]:
        """The study's variants, without its start."""
        return lines([run for run in self.runs if run.variant != START], self.study["baseline"])


@dataclass(frozen=True)
class Line:
    """One variant over its seeds: a row of the table."""

    variant: str
    scores: dict[int, float]
    """of each seed"""
    mean: float
    low: float
    high: float
    """95% interval of the mean over seeds (Student's t)"""
    difference: float | None
    """mean difference to the baseline over common seeds; None for the baseline"""
    difference_low: float | None
    difference_high: float | None
    p: float | None
    """two-sided sign-flip test of the differences, exact up to 13 seeds"""
    p_holm: float | None
    """p after Holm's correction over all variants of the table"""
    kl: dict[str, list[float]]
    """teacher -> mean KL(teacher || student) by t"""
    seconds: float
    tokens: float


def earlier_results(study: Study) -> Results:
    """What the study's `results` holds of complete seeds; nothing where there is no such file."""
    entries = read_json(Path(study.results)) if study.results else None
    results = Results.from_json(entries) if entries else Results({}, [], {}, {}, [])
    done: dict[int, set[str]] = {}
    for run in results.runs:
        done.setdefault(run.seed, set()).add(run.variant)
    planned = set(study.planned())
    complete = [seed for seed in study.seed_numbers() if done.get(seed, set()) >= planned]
    return replace(results, runs=[run for run in results.runs if run.seed in complete and run.variant in planned])


def collect(study: Study) -> Results:
    """Everything that the study's finished runs left, also written to STUDY/results.json; seeds of earlier results in front."""
    before = earlier_results(study)
    known = {run.seed for run in before.runs}
    seeds = [seed for seed in study.seed_numbers() if seed not in known]
    folders = [study.start_dir(seed) for seed in seeds] if study.start is not None else []
    folders += [study.run_dir(name, seed) for name in study.by_name for seed in seeds]
    made = [RunResult.from_json(result) for folder in folders if (result := read_json(folder / "result.json"))]
    order = {name: i for i, name in enumerate([START, *study.by_name])}
    runs = sorted([*before.runs, *made], key=lambda run: (order[run.variant], run.seed))
    environments = [dict(environment) for environment in before.environments]
    for run in made:
        environment = {name: run.environment[name] for name in _SAME} if run.environment else {}
        environments += [environment] * (environment not in environments)
    probe: dict[str, TeacherProbe] = {}
    for path in sorted(study.folder.glob("*/*/teacher_probe.json")):
        probe = read_probes(read_json(path)) | probe  # does not depend on variant or seed: the first one counts
    teachers = {name: Scores.from_json(s) for name, s in (read_json(study.folder / "teachers.json") or {}).items()}
    results = Results(asdict(study), environments, {**before.teachers, **teachers}, {**before.probe, **probe}, runs)
    write_text(study.folder / "results.json", _text(results.to_json()))
    return results


def _text(results: dict[str, Any]) -> str:
    """JSON with a line per run: differences between two studies can be read."""
    rest = json.dumps({name: value for name, value in results.items() if name != "runs"}, indent=1)
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    return f'{rest[:-2]},\n "runs": [\n{runs}\n]}}\n'


def lines(runs: Sequence[RunResult], baseline: str) -> list[Line]:
    """A line per variant, in the order of first appearance. Runs without their baseline (`baseline_of`) have no differences."""
    by_variant: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, {})[run.seed] = run
    bases = {name: baseline_of(name, baseline, by_variant) for name in by_variant}
    scores = {name: {seed: run.score for seed, run in of.items()} for name, of in by_variant.items()}
    made = [_line(name, of, {} if name == bases[name] else scores[bases[name]]) for name, of in by_variant.items()]
    tested = {line.variant: line.p for line in made if line.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [replace(line, p_holm=corrected.get(line.variant)) for line in made]


def baseline_of(variant: str, baseline: str, variants: Collection[str]) -> str:
    """What a variant is compared with: A-B with A-BASELINE where there is one, else with BASELINE; itself where there is neither."""
    of_its_group = f"{variant.partition('-')[0]}-{baseline}"
    return next((name for name in (of_its_group, baseline) if name in variants), variant)


def _line(name: str, runs: Mapping[int, RunResult], base: Mapping[int, float]) -> Line:
    """`p_holm` is None."""
    scores = {seed: runs[seed].score for seed in sorted(runs)}
    differences = [scores[seed] - base[seed] for seed in scores if seed in base]
    low, high = t_interval(list(scores.values()))
    difference_low, difference_high = t_interval(differences) if differences else (None, None)
    teachers = next(iter(runs.values())).kl
    return Line(
        variant=name,
        scores=scores,
        mean=float(np.mean(list(scores.values()))),
        low=low,
        high=high,
        difference=float(np.mean(differences)) if differences else None,
        difference_low=difference_low,
        difference_high=difference_high,
        p=sign_flip(differences) if differences else None,
        p_holm=None,
        kl={teacher: np.mean([run.kl[teacher] for run in runs.values()], axis=0).tolist() for teacher in teachers},
        seconds=float(np.mean([run.seconds for run in runs.values()])),
        tokens=float(np.mean([run.tokens for run in runs.values()])),
    )


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean; one value, or equal ones, give no width."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5 if spread else 0.0
    return mean - half, mean + half


def print_table(study: Study, results: Results) -> None:
    """Prints the table, and writes it to STUDY/table.md."""
    compared = results.compared()
    if not compared:
        return
    tables = [cells(compared, study.baseline), by_t(compared)]
    write_text(study.folder / "table.md", "\n\n".join(markdown(*each) for each in tables) + "\n")
    header, rows = tables[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=f"{study.name}: {study.folder}")
    for i, column in enumerate(header):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(table)


def cells(compared: Sequence[Line], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text."""
    teachers = list(dict.fromkeys(name for line in compared for name in line.kl))
    header = ["variant", "seeds", "score", "95% interval", f"minus {baseline}", "95% interval", "p", "p (Holm)"]
    header += [*(f"KL {name}" for name in teachers), "s", "tokens"]
    rows = [
        [
            line.variant,
            str(len(line.scores)),
            f"{line.mean:.3f}",
            f"{line.low:.3f} to {line.high:.3f}",
            _signed(line.difference),
            "" if line.difference is None else f"{line.difference_low:+.3f} to {line.difference_high:+.3f}",
            _number(line.p),
            _number(line.p_holm),
            *(f"{sum(line.kl[t]) / len(line.kl[t]):.3f}" for t in teachers),
            f"{line.seconds:.0f}",
            f"{line.tokens:,.0f}",
        ]
        for line in compared
    ]
    return header, rows


def by_t(compared: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a second table: KL from each teacher to the student at each t."""
    teachers = list(dict.fromkeys(name for line in compared for name in line.kl))
    header = ["variant", *(f"KL {teacher}, t = {t}" for teacher in teachers for t in TIMESTEPS)]
    return header, [[line.variant, *(f"{x:.3f}" for t in teachers for x in line.kl[t])] for line in compared]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    ruled = "|".join(["---", *["---:"] * (len(header) - 1)])
    return "\n".join(["| " + " | ".join(header) + " |", f"|{ruled}|", *("| " + " | ".join(row) + " |" for row in rows)])


def _signed(x: float | None) -> str:
    return "" if x is None else f"{x:+.3f}"


def _number(p: float | None) -> str:
    return "" if p is None else f"{p:.4f}"

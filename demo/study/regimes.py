"""Writes the numbers and figures of docs/reliability.md from the committed results: `python -m demo.study.regimes`.

Reads demo/study/reliability/ (the study of the dial, and published_*, of the shipped teacher) and demo/text/results/. Families of
tests, and when they may be read, are those of the page's protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from demo.study import regimes_figures as figures
from demo.study.evidence import fill
from pipeline.core.errors import exit_code
from pipeline.core.files import read_json, write_text
from pipeline.evaluation.statistics import holm, sign_flip
from pipeline.experiments.grid import START
from pipeline.experiments.results import Results, lines, markdown, t_interval
from pipeline.training.held_out import TIMESTEPS
from pipeline.training.teacher_probe import TeacherProbe

ROOT = Path(__file__).resolve().parents[2]
RESULTS, TEXT = ROOT / "demo/study/reliability", ROOT / "demo/text/results"
DOCUMENT, FIGURES = ROOT / "docs/reliability.md", ROOT / "docs/evidence"

BASELINE = {"moe": "calm", "dense": "kl"}
NATIVES = {"moe": ("reverse_calm", "calm_tidal_compdemo"), "dense": ("tidal_compdemo", "reverse_kl")}
STRATEGIES = [(pipeline, strategy) for pipeline, natives_of in NATIVES.items() for strategy in natives_of]
TIDAL = {"moe": "calm_tidal", "dense": "tidal"}
UNRELIABLE = 0.9
"""Teachers below this belong to the primary family."""

Scores = dict[int, float]
"""Of a cell, by seed."""


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the study; undistilled has neither pipeline nor dial."""

    data: str
    pipeline: str
    dial: str
    strategy: str

    @classmethod
    def of(cls, variant: str) -> Cell:
        """From a variant's name: carry-moe_t30-calm, carry-undistilled."""
        data, *between, strategy = variant.split("-")
        pipeline, _, dial = between[0].partition("_") if between else ("", "", "")
        return cls(data, pipeline, dial, strategy)

    @property
    def teacher(self) -> str:
        return f"{self.pipeline}_{self.dial}"

    def beside(self, strategy: str) -> Cell:
        """The cell of another strategy with the same data and teacher."""
        return Cell(self.data, self.pipeline, self.dial, strategy)


Pulls = Mapping[Cell, Mapping[str, Sequence[float]]]
"""What demo.study.mechanism measured."""


@dataclass(frozen=True)
class Known:
    """What was measured of a teacher; the mean where it was made several times."""

    steps: Sequence[int]
    """in each of its trainings"""
    score: float
    """Exact match; nats per byte on real text"""
    probe: TeacherProbe


@dataclass(frozen=True)
class Evidence:
    """All that the page stands on."""

    teachers: Mapping[str, Known]
    scores: Mapping[Cell, Scores]
    starts: Mapping[int, tuple[float, int]]
    """Seed: score of its start, and rounds of its training."""
    planned: int
    """Seeds of the protocol."""
    environments: Sequence[Mapping[str, Any]]
    pulls: Pulls = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, prefix: str = "") -> Evidence:
        """What is there: no file is no teacher, or no run."""
        teachers, results = read_json(folder / f"{prefix}teachers.json"), read_json(folder / f"{prefix}results.json")
        made = cls.of(teachers or [], Results.from_json(results) if results else None)
        return replace(made, pulls=read_pulls(folder / f"{prefix}mechanism.json"))

    @classmethod
    def of(cls, sets: Sequence[Mapping[str, Any]], results: Results | None) -> Evidence:
        """From the contents of teachers.json and results.json."""
        known = {name: _known(name, sets) for name in dict.fromkeys(name for each in sets for name in each["teachers"])}
        scores: dict[Cell, Scores] = {}
        starts = {}
        for run in results.runs if results else ():
            if run.variant == START:
                starts[run.seed] = run.score, run.rounds
            else:
                scores.setdefault(Cell.of(run.variant), {})[run.seed] = run.score
        planned = results.study["seeds"].partition("..") if results else ("0", "", "-1")
        count = int(planned[2]) - int(planned[0]) + 1
        return cls(known, scores, starts, count, results.environments if results else [])

    @property
    def finished(self) -> bool:
        """Whether every seed of the protocol is complete."""
        return 0 < self.planned <= len(self.complete())

    def complete(self) -> list[int]:
        """Seeds of which every cell is there."""
        return sorted(set.intersection(*map(set, self.scores.values()))) if self.scores else []

    def minus(self, ours: Cell, other: Cell) -> Scores:
        """Differences, paired by seed."""
        a, b = self.scores.get(ours, {}), self.scores.get(other, {})
        return {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}


def read_pulls(path: Path) -> Pulls:
    """Of a file of demo.study.mechanism; none of no file."""
    cells = (read_json(path) or {"cells": {}})["cells"]
    return {Cell.of(variant): pulls for variant, pulls in cells.items()}


def _known(name: str, sets: Sequence[Mapping[str, Any]]) -> Known:
    sets = [each for each in sets if name in each["teachers"]]
    measured = [each["teachers"][name] for each in sets]
    probes = [TeacherProbe.from_json(f["probe"]["t"], f["probe"]) for f in measured]

    def over_sets(values: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
        return {view: np.mean([each[view] for each in values], axis=0).tolist() for view in values[0]}

    probe = replace(
        probes[0],
        log_prob=over_sets([p.log_prob for p in probes]),
        accuracy=over_sets([p.accuracy for p in probes]),
    )
    return Known(
        [each["steps"][name] for each in sets if name in each["steps"]], mean(f["exact_match"] for f in measured), probe
    )


Comparison = tuple[Sequence[str], Scores]
"""Words that name it, and its difference in each seed."""


def natives(evidence: Evidence) -> Iterator[tuple[Cell, Cell]]:
    """(native, baseline objective) of every teacher and data."""
    for cell in evidence.scores:
        if cell.pipeline and cell.strategy in NATIVES[cell.pipeline]:
            yield cell, cell.beside(BASELINE[cell.pipeline])


def over_teachers(
    evidence: Evidence, summary: Callable[[Sequence[float], Sequence[float]], float], chosen: Callable[[Known], bool]
) -> list[Comparison]:
    """Per native on `carry`: in each seed, `summary` of (reliabilities, differences to the baseline) of the chosen teachers."""
    made: list[Comparison] = []
    for pipeline, strategy in STRATEGIES:
        by_teacher = differences(evidence, pipeline, strategy)
        by_teacher = {name: d for name, d in by_teacher.items() if chosen(evidence.teachers[name])}
        if not by_teacher:
            continue
        x = [evidence.teachers[name].probe.reliability for name in by_teacher]
        seeds = sorted(set.intersection(*map(set, by_teacher.values())))
        moved = {seed: summary(x, [d[seed] for d in by_teacher.values()]) for seed in seeds}
        made.append(([pipeline, strategy, BASELINE[pipeline], f"{len(x)} teachers"], moved))
    return made


def differences(evidence: Evidence, pipeline: str, strategy: str) -> dict[str, Scores]:
    """Per teacher of a pipeline, on `carry`: this native minus the baseline objective."""
    pairs = [(a, b) for a, b in natives(evidence) if (a.data, a.pipeline, a.strategy) == ("carry", pipeline, strategy)]
    return {a.teacher: evidence.minus(a, b) for a, b in pairs}


@dataclass(frozen=True)
class Rule:
    """What the protocol asks of a native before it is advised."""

    pipeline: str
    strategy: str
    p: float
    """of its slope, after Holm"""
    bound: float
    """reliability at which the line through the first half of the seeds crosses zero"""
    separated: int
    """teachers on the right side of it in the other half"""
    teachers: int

    @property
    def holds(self) -> bool:
        """Whether the native is advised below the bound."""
        return self.p < 0.05 and self.separated >= self.teachers - 1


def rules(evidence: Evidence) -> list[Rule]:
    """Of every native; none before the last seed is complete."""
    if not evidence.finished:
        return []
    slopes = over_teachers(evidence, slope, _all)
    adjusted = holm([sign_flip(list(moved.values())) for _, moved in slopes])
    made = []
    for ((pipeline, strategy, *_), moved), p in zip(slopes, adjusted, strict=True):
        by_teacher = differences(evidence, pipeline, strategy)
        x = [evidence.teachers[name].probe.reliability for name in by_teacher]
        first, other = np.array_split(sorted(moved), 2)
        line = np.polyfit(x, [mean(d[seed] for seed in first) for d in by_teacher.values()], 1)
        bound = float(-line[1] / line[0])
        ahead = [mean(d[seed] for seed in other) > 0 for d in by_teacher.values()]
        separated = sum(better == (known < bound) for better, known in zip(ahead, x, strict=True))
        made.append(Rule(pipeline, strategy, p, bound, separated, len(x)))
    return made


def rule_table(evidence: Evidence) -> str:
    """What the rule makes of the data."""
    header = [
        "of",
        "native",
        "minus",
        "p of the slope (Holm)",
        "r",
        "teachers on the right side of it",
        "advised below r",
    ]
    rows = [
        [
            rule.pipeline,
            rule.strategy,
            BASELINE[rule.pipeline],
            f"{rule.p:.4f}",
            f"{rule.bound:.3f}",
            f"{rule.separated} of {rule.teachers}",
            "yes" if rule.holds else "no",
        ]
        for rule in rules(evidence)
    ]
    return markdown(header, rows) if rows else "No runs yet."


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least squares."""
    return float(np.polyfit(x, y, 1)[0])


def _all(_: Known) -> bool:
    return True


def families(evidence: Evidence) -> dict[str, list[Comparison]]:
    """The protocol's families of comparisons."""
    pairs = {"regimes": list(natives(evidence)), "parts": [], "gain": []}
    for cell in evidence.scores:
        if not cell.pipeline:
            continue
        tidal = TIDAL[cell.pipeline]
        if cell.strategy in (f"{tidal}_compdemo", f"{tidal}_training", f"{tidal}_timestep"):
            pairs["parts"].append((cell, cell.beside(tidal)))
        pairs["gain"].append((cell, Cell(cell.data, "", "", "undistilled")))
    return {
        "primary": over_teachers(evidence, lambda _, y: mean(y), lambda known: known.probe.reliability < UNRELIABLE),
        "slope": over_teachers(evidence, slope, _all),
        **{
            family: [([a.data, a.teacher, a.strategy, b.strategy], evidence.minus(a, b)) for a, b in of]
            for family, of in pairs.items()
        },
    }


def family_table(comparisons: Iterable[Comparison], *, tested: bool) -> str:
    """Means with Student's 95% intervals; p of the exact sign flips, and after Holm, where they may be read."""
    made = [(words, list(moved.values())) for words, moved in comparisons if moved]
    header = ["of", "", "", "minus", "seeds", "mean", "95% interval"]
    rows = [
        [*words, str(len(d)), f"{mean(d):+.3f}", "{:+.3f} to {:+.3f}".format(*t_interval(d)) if len(d) > 1 else ""]
        for words, d in made
    ]
    if tested:
        p = [sign_flip(d) for _, d in made]
        header += ["p", "p (Holm)"]
        rows = [[*row, f"{raw:.4f}", f"{adjusted:.4f}"] for row, raw, adjusted in zip(rows, p, holm(p), strict=True)]
    return markdown(header, rows) if rows else "No runs yet."


def teachers_table(teachers: Mapping[str, Known], score: str = "exact match") -> str:
    """Teachers as measured."""
    header = ["teacher", "steps", score, "reliability", "room", *(f"t = {t}" for t in TIMESTEPS)]
    rows = [
        [
            name,
            ", ".join(map(str, known.steps)),
            f"{known.score:.3f}",
            f"{known.probe.reliability:.3f}",
            f"{known.probe.room:+.3f}",
            *(
                f"{one:.2f} / {two:.2f}"
                for one, two in zip(known.probe.accuracy["one_view"], known.probe.accuracy["two_views"], strict=True)
            ),
        ]
        for name, known in teachers.items()
    ]
    return markdown(header, rows) if rows else "No teachers yet."


def cells_table(evidence: Evidence) -> str:
    """Every cell: its score, and its differences to undistilled and to the baseline objective."""

    def words(moved: Scores) -> str:
        if not moved:
            return ""
        d = list(moved.values())
        return f"{mean(d):+.3f}" + (" ({:+.3f} to {:+.3f})".format(*t_interval(d)) if len(d) > 1 else "")

    rows = []
    for cell, scores in evidence.scores.items():
        labels = [cell.data, cell.teacher if cell.pipeline else "", cell.strategy, str(len(scores))]
        base = evidence.minus(cell, cell.beside(BASELINE[cell.pipeline])) if cell.pipeline else {}
        gain = evidence.minus(cell, Cell(cell.data, "", "", "undistilled")) if cell.pipeline else {}
        is_base = cell.pipeline and cell.strategy == BASELINE[cell.pipeline]
        rows.append([*labels, f"{mean(scores.values()):.3f}", words(gain), "" if is_base else words(base)])
    header = ["data", "teacher", "strategy", "seeds", "score", "minus undistilled", "minus baseline objective"]
    return markdown(header, rows) if rows else "No runs yet."


def pulls_table(pulls: Pulls) -> str:
    """Where each objective pulls: steps away from the truth, cosine with it, and size, at each t."""
    header = ["teacher", "strategy", *(f"t = {t}" for t in TIMESTEPS)]
    rows = [
        [
            cell.teacher if cell.pipeline else cell.data,
            cell.strategy,
            *(
                f"{wrong:.0%} / {cosine:+.2f} / {size:.2f}"
                for wrong, cosine, size in zip(of["wrong"], of["cosine"], of["size"], strict=True)
            ),
        ]
        for cell, of in pulls.items()
    ]
    return markdown(header, rows) if rows else "Not measured yet."


def study_blocks(name: str, results: Results | None, pairs: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """The blocks of a smaller study, whose variants are TEACHER-STRATEGY: its start and cells, and families of pairs (variant,
    minus which)."""
    made = lines(results.runs, "undistilled") if results else []
    scores = {line.variant: line.scores for line in made if line.variant != START}

    def minus(ours: str, other: str) -> Comparison:
        (teacher, strategy), a, b = ours.split("-"), scores.get(ours, {}), scores.get(other, {})
        words = [teacher, strategy, "", other.partition("-")[2]]
        return words, {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}

    planned = (len(results.study["variants"]), int(results.study["seeds"].partition("..")[2]) + 1) if results else None
    tested = planned == (len(scores), min(map(len, scores.values()), default=0))
    header = ["variant", "seeds", "score", "95% interval", "minus undistilled", "95% interval"]
    rows = [
        [
            line.variant,
            str(len(line.scores)),
            f"{line.mean:.3f}",
            f"{line.low:.3f} to {line.high:.3f}" if len(line.scores) > 1 else "",
            "" if line.difference is None else f"{line.difference:+.3f}",
            ""
            if line.difference is None or len(line.scores) == 1
            else f"{line.difference_low:+.3f} to {line.difference_high:+.3f}",
        ]
        for line in made
    ]
    return {f"{name} cells": markdown(header, rows) if rows else "No runs yet."} | {
        f"{name} {family}": family_table([minus(*pair) for pair in of], tested=tested) for family, of in pairs.items()
    }


def against(teachers: Sequence[str], pipeline: str) -> dict[str, list[tuple[str, str]]]:
    """Families of a smaller study for these teachers: each native minus the baseline objective, and with CompDemo minus without."""
    base, tidal = BASELINE[pipeline], TIDAL[pipeline]
    return {
        "natives": [(f"{name}-{native}", f"{name}-{base}") for name in teachers for native in NATIVES[pipeline]],
        "compdemo": [(f"{name}-{tidal}_compdemo", f"{name}-{tidal}") for name in teachers],
    }


def read_published(folder: Path) -> dict[str, str]:
    """The blocks of the study of the published reading."""
    evidence, results = Evidence.read(folder, "published_"), read_results(folder / "published.json")
    return study_blocks("published", results, against(("block", "full"), "moe")) | {
        "published teachers": teachers_table(evidence.teachers),
        "published pulls": pulls_table(evidence.pulls),
    }


def read_text(folder: Path) -> dict[str, str]:
    """The blocks of the study on real text."""
    results, teachers = read_results(folder / "results.json"), read_text_teachers(folder)
    moe, dense = (against((f"{name}_block", f"{name}_full"), name) for name in BASELINE)
    pairs = {"moe": moe["natives"], "dense": dense["natives"], "compdemo": moe["compdemo"] + dense["compdemo"]}
    return study_blocks("text", results, pairs) | {
        "text teachers": teachers_table(teachers, "nats per byte"),
        "text pulls": pulls_table(read_pulls(folder / "mechanism.json")),
        "text cloze": cloze_table(results),
    }


def read_text_teachers(folder: Path) -> dict[str, Known]:
    """What demo.text.measure found of each teacher and reading."""
    return {
        name: Known([of["steps"]], of["nats_per_byte"], TeacherProbe.from_json(of["probe"]["t"], of["probe"]))
        for name, of in (read_json(folder / "teachers.json") or {}).items()
    }


def cloze_table(results: Results | None) -> str:
    """Share of masked tokens that the students of each cell rank first, by t: mean over seeds."""
    by_variant: dict[str, list[Sequence[float]]] = {}
    for run in results.runs if results else ():
        if run.variant != START:
            by_variant.setdefault(run.variant, []).append(run.accuracy)
    rows = [[variant, *(f"{share:.3f}" for share in np.mean(shares, axis=0))] for variant, shares in by_variant.items()]
    return markdown(["variant", *(f"t = {t}" for t in TIMESTEPS)], rows) if rows else "No runs yet."


def read_results(path: Path) -> Results | None:
    """A study's results, where there are any."""
    entries = read_json(path)
    return Results.from_json(entries) if entries else None


def read_all(folder: Path, text: Path) -> dict[str, str]:
    """Every block of the page, from the files of its studies; no file is no measurement."""
    return blocks(Evidence.read(folder)) | read_published(folder) | read_text(text)


def state(evidence: Evidence) -> str:
    """How far the study is, and where it ran."""
    if not evidence.starts:
        return "No student has been trained yet."
    complete, runs = evidence.complete(), sum(map(len, evidence.scores.values()))
    began = ", ".join(f"{score:.3f}" + f" ({n} rounds)" * (n > 1) for score, n in evidence.starts.values())
    where = "; ".join(
        f"commit {e['commit'][:12]}, torch {e['versions']['torch']}, {e['device']}" for e in evidence.environments
    )
    return (
        f"{runs} cells of {len(evidence.starts)} seeds have been run; {len(complete)} of {evidence.planned} seeds are complete. "
        f"Starts: {began}.\n{where}."
    )


def blocks(evidence: Evidence) -> dict[str, str]:
    """What stands between the page's marks."""
    made = {name: family_table(of, tested=evidence.finished) for name, of in families(evidence).items()}
    return made | {
        "rule": rule_table(evidence),
        "teachers": teachers_table(evidence.teachers),
        "cells": cells_table(evidence),
        "pulls": pulls_table(evidence.pulls),
        "state": state(evidence),
    }


def main() -> None:
    """Fills the page and plots its figures."""
    evidence = Evidence.read(RESULTS)
    write_text(DOCUMENT, fill(DOCUMENT.read_text(encoding="utf-8"), read_all(RESULTS, TEXT), RESULTS))
    if evidence.teachers:
        figures.probes(
            {name: known.probe for name, known in evidence.teachers.items()}, FIGURES / "reliability-probe.svg"
        )
    if points := list(gain_points(evidence)):
        figures.gains(points, FIGURES / "reliability-gain.svg")
    if (results := read_results(TEXT / "results.json")) and (teachers := read_text_teachers(TEXT)):
        figures.gains(list(text_points(results, teachers)), FIGURES / "text-gain.svg")


def gain_points(evidence: Evidence) -> Iterator[figures.Point]:
    """Baseline objective and natives with each teacher, on `carry`."""
    for cell in evidence.scores:
        if cell.data == "carry" and cell.strategy in figure_strategies(cell.pipeline):
            yield figures.Point(
                cell.pipeline,
                cell.strategy,
                evidence.teachers[cell.teacher].probe.reliability,
                list(evidence.minus(cell, Cell(cell.data, "", "", "undistilled")).values()),
                list(evidence.minus(cell, cell.beside(BASELINE[cell.pipeline])).values()),
            )


def text_points(results: Results, teachers: Mapping[str, Known]) -> Iterator[figures.Point]:
    """The same of the study on real text, in nats per byte that are saved."""
    scores = {line.variant: line.scores for line in lines(results.runs, "undistilled")}
    for variant, of in scores.items():
        teacher, _, strategy = variant.partition("-")
        pipeline = teacher.partition("_")[0]
        if strategy in figure_strategies(pipeline):
            others = scores["undistilled"], scores[f"{teacher}-{BASELINE[pipeline]}"]
            saved = [[other[seed] - of[seed] for seed in sorted(of.keys() & other.keys())] for other in others]
            yield figures.Point(pipeline, strategy, teachers[teacher].probe.reliability, *saved)


def figure_strategies(pipeline: str) -> Sequence[str]:
    """The baseline objective and the natives of a pipeline."""
    return (BASELINE[pipeline], *NATIVES[pipeline]) if pipeline in BASELINE else ()


if __name__ == "__main__":
    sys.exit(exit_code("regimes", main))

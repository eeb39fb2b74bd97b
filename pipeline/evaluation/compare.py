"""Whether two models differ: paired, on the problems that both were asked.

`python pipeline/evaluate.py compare A B [C ...] [--output FILE.json]`. Each is a run directory (its newest evaluated step), a
folder under its evaluation/, or several of those joined by commas: the same model under other seeds, averaged per problem.
"""

from __future__ import annotations

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
from pipeline.core.version import plain_parser
from pipeline.evaluation.results import SAMPLES, Score, TaskSample, read_samples, read_score
from pipeline.evaluation.statistics import bootstrap, holm, mcnemar, sign_flip

REAL = 0.05
HARMLESS = ("batch_size", "device")
"""Settings of a score that say nothing of what was asked, or how it was decoded."""


@dataclass(frozen=True)
class Scored:
    """One model's scores on one task."""

    metric: str
    by_problem: Mapping[int | None, float]
    """Problem id -> score, averaged over seeds."""
    settings: dict[str, object]
    """Of the first result; where two models' settings differ, a comparison is of more than the models."""

    @classmethod
    def of(cls, results: Sequence[tuple[Score, Sequence[TaskSample]]]) -> Scored:
        """From score and samples of each seed."""
        first = results[0][0]
        values: dict[int | None, list[float]] = {}
        for _, samples in results:
            for sample in samples:
                values.setdefault(sample.id, []).append(float(sample.value))
        asked = {i: fmean(v) for i, v in values.items() if len(v) == len(results)}
        used = first.provenance.settings if first.provenance else {}
        decoded = {name: value for name, value in used.items() if name not in HARMLESS}
        settings = decoded | {"fewshot": first.fewshot, "prompts": first.prompts_hash}
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
    """Settings that differ, apart from the model, with both values: `block_size 32 and 8`."""

    @property
    def real(self) -> bool:
        return self.p_holm < REAL


def comparable(samples: Sequence[TaskSample]) -> bool:
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
        differs_in=[
            name if name == "prompts" else f"{name} {of_a.settings.get(name)} and {of_b.settings.get(name)}"
            for name in of_a.settings | of_b.settings
            if of_a.settings.get(name) != of_b.settings.get(name)
        ],
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
        raise _unscored(name, folders[0])
    return scored


def _folder(path: Path) -> Path:
    """Of the results: of a run its newest evaluated step, of a checkpoint its step."""
    if path.parent.name == "checkpoints":
        return path.parents[1] / "evaluation" / path.name
    if (path / "evaluation").is_dir() or (path / "recipe.yaml").is_file():
        scored = sorted(folder for folder in (path / "evaluation").glob("step-*") if any(folder.glob("*.json")))
        return scored[-1] if scored else path / "evaluation" / "latest"
    if not path.exists():
        raise BadInput(f"{path}: no such folder; give a run directory or a folder of its evaluation/")
    return path


def _unscored(name: str, folder: Path) -> BadInput:
    if folder.parent.name != "evaluation":
        return BadInput(f"{name} holds no scores: give a run directory or a folder of its evaluation/")
    run = folder.parents[1]
    if any(folder.glob(f"*{SAMPLES}")):
        return BadInput(f"{name}: its programs were not run yet: `python pipeline/evaluate.py score {run}`")
    step = f" --step {int(folder.name[5:])}" if folder.name.startswith("step-") else ""
    return BadInput(f"{name} is not scored yet: `python pipeline/evaluate.py {run}{step}`")


def main(argv: Sequence[str]) -> None:
    """Prints the table; `--output` writes it as JSON, too."""
    p = plain_parser(__doc__)
    p.prog = "evaluate.py compare"
    p.add_argument("models", nargs="+", help="run directory, folder of results, or several (seeds) joined by commas")
    p.add_argument("--output", type=Path, help="write the comparisons to this file, as JSON")
    flags = p.parse_args(argv)
    if len(flags.models) < 2:
        raise BadInput("compare: name at least two models")
    comparisons = compare({name: read(name) for name in flags.models})
    if not comparisons:
        raise BadInput(f"compare: {' and '.join(flags.models)} have no task and metric in common")
    if flags.output:
        try:
            write_json(flags.output, [asdict(c) | {"real": c.real} for c in comparisons])
        except OSError as error:
            raise BadInput(f"--output {flags.output}: {error.strerror}: choose another file") from None
    print_comparisons(Console(), comparisons)


def print_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    """In 80 columns: models by letters, a row per difference, and what else differs."""
    names = list(dict.fromkeys(name for c in comparisons for name in (c.a, c.b)))
    letters = {name: _letter(number) for number, name in enumerate(names)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("task", "", "scores", "diff.", "95% interval", "n", "p", "real?"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "task")
    notes = [f"p: adjusted (Holm) for all rows; real: below {REAL}"]
    for c in comparisons:
        pair = f"{letters[c.b]} - {letters[c.a]}"
        table.add_row(
            f"{c.task}\n({c.metric})",
            pair,
            f"  {c.value_b:.3f}\n- {c.value_a:.3f}",
            f"{c.difference:+.3f}",
            f"{c.low:+.3f} to {c.high:+.3f}",
            str(c.n),
            f"{c.p_holm:.3f}" if c.p_holm >= 0.001 else "<0.001",
            "yes" if c.real else "no",
        )
        if c.differs_in:
            notes.append(f"{c.task}, {pair}: not the model alone differs, but also {', '.join(c.differs_in)}")
    for name, letter in letters.items():
        console.print(f"{letter} = {name}", soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


def _letter(number: int) -> str:
    """A to Z, then A1."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")

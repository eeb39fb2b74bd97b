"""report.html: what is known of a run, section by section. A part that is missing is one line that says why."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.core.errors import BadInput
from pipeline.evaluation.compare import HEADINGS, Comparison, Scored, comparable, compare, table_rows
from pipeline.reporting import chunk_view, figures
from pipeline.reporting.run_record import Record, Run, by_label
from pipeline.reporting.summary import interval

VERDICTS = {True: "right", False: "wrong", None: ""}  # None: a graded metric
SHOWN_SAMPLES = 6  # of each verdict
DRAWN_SAMPLES, DRAWN_TOKENS = 3, 40


@dataclass
class Section:
    """A heading and what stands below it, in this order: note, figure, tables, and what `kind` makes of `content`."""

    title: str
    note: str = ""
    figure: Markup | None = None
    tables: list[list[list[Any]]] = field(default_factory=list)
    kind: str = ""
    content: Any = None

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


def render(run: Run, baseline: Run | None, scores: dict[str, dict[str, Record]], teacher_label: str = "teacher") -> str:
    """The whole page; it needs no other file and no network."""
    runs = by_label(run, baseline)
    sections = [
        *score_sections(scores, comparisons(run, baseline, scores, teacher_label)),
        losses(runs),
        validation(runs),
        probe(run),
        distance(run),
        gradients(run),
        tidal(run),
        alignment(run),
        *alignments(run),
        throughput(runs),
        *samples(run),
        text(
            "Recipe",
            yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True) if run.recipe else "",
            "recipe.yaml",
        ),
        text(
            "Environment",
            yaml.safe_dump(run.environment, sort_keys=False) if run.environment else "",
            "environment.json",
        ),
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.jinja").render(run=run, baseline=baseline, sections=sections)


def number(value: Any) -> str:
    """Numbers as people read them; everything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def comparisons(
    run: Run, baseline: Run | None, scores: dict[str, dict[str, Record]], teacher_label: str
) -> list[Comparison]:
    """All pairs of models on every task, where their samples hold the scores."""
    places = {"teacher": (run, teacher_label)} | {k: (r, r.last_step) for k, r in by_label(run, baseline).items()}
    models: dict[str, dict[str, Scored]] = {label: {} for label in places}
    for task, found in scores.items():
        for label, score in found.items():
            of, name = places[label]
            rows = of.samples(name, task)
            if comparable(score["metric"], rows):
                models[label][task] = Scored.of([(score, rows)])
    return compare(models)


def score_sections(scores: dict[str, dict[str, Record]], compared: list[Comparison]) -> Iterator[Section]:
    """A section a task."""
    if not scores:
        yield Section("Scores", note="No scores: evaluate has not run.")
    for task, models in scores.items():
        rows = [["model", "score", "95% interval", "problems", "decoding"]]
        rows += [[model, f"{s['value']:.3f}", interval(s), s["n"], s.get("preset", "")] for model, s in models.items()]
        missing = [model for model in figures.COLOURS if model not in models]
        note = f"No score of: {', '.join(missing)}." if missing else ""
        note += "".join(f" Alarm, {model}: {alarm}." for model, s in models.items() for alarm in s.get("alarms", []))
        pairs = table_rows([c for c in compared if c.task == task])
        tables = [rows, [list(HEADINGS), *pairs]] if pairs else [rows]
        yield Section(f"Scores: {task}", note=note.strip(), figure=figures.scores(models), tables=tables)


def losses(runs: dict[str, Run]) -> Section:
    title = "Training losses"
    held = {label: run for label, run in runs.items() if run.training}
    if not held:
        return Section(title, note="No training lines in metrics.jsonl: distill has not run.")
    note = "Thin: one logging line; thick: running mean. The loss is the weighted sum of its terms."
    return Section(title, note=note, figure=figures.losses(held))


def validation(runs: dict[str, Run]) -> Section:
    title = "Validation loss by t"
    held = {label: run for label, run in runs.items() if run.validation}
    if not held:
        return Section(
            title,
            note="No validation lines in metrics.jsonl: the recipe has no data.validation, or distill has not run.",
        )
    ts = list(next(iter(held.values())).validation[-1]["by_t"])
    rows = [["last step", "all t", *(f"t = {t}" for t in ts)]]
    rows += [[label, run.validation[-1]["loss"], *run.validation[-1]["by_t"].values()] for label, run in held.items()]
    note = "Mean cross-entropy of a masked token of held-out rows, in nats, at fixed t with fixed noise."
    return Section(title, note=note, figure=figures.validation(held), tables=[rows])


def probe(run: Run) -> Section:
    title = "What the teacher knows"
    if not run.probe.get("teachers"):
        return Section(
            title,
            note="No teacher_probe.json: the recipe has no teachers or no data.validation, or distill has not run.",
        )
    note = (
        "Held-out rows before step 0: the teacher sees the truth with a share t of its response masked. With two "
        "views (CompDemo), each reveals half of what the other predicts. A teacher near the dotted line reads through "
        "a wrong tokenizer, template or mask."
    )
    return Section(title, note=note, figure=figures.probe(run.probe["t"], run.probe["teachers"]))


def distance(run: Run) -> Section:
    title = "KL to the teachers"
    if not run.distance:
        return Section(
            title,
            note="No distance.json: the recipe has no teachers or no data.validation, or distill has not run.",
        )
    names = list(next(iter(run.distance.values())))
    rows = [["mean over t, nats", *names]]
    rows += [[f"step {step}", *(statistics.mean(kl[n].values()) for n in names)] for step, kl in run.distance.items()]
    note = (
        "KL(teacher || student) on held-out rows before training and after, T = 1. Of a masked token's distribution where "
        "the tokenizer is shared; otherwise of a true chunk's probability, the event that both tokenizers have."
    )
    return Section(title, note=note, figure=figures.distances(names, run.distance), tables=[rows])


def gradients(run: Run) -> Section:
    title = "Gradient of CALM and Reverse CALM"
    if "temperature" not in (objective := run.recipe.get("objective", {})):
        return Section(title, note="No recipe.yaml in the run directory.")
    note = (
        "How hard a chunk pulls at the student's log-probability of it (below 0: upwards). Left, a teacher that is sure of it: "
        "CALM pulls alike whatever the student knows, Reverse CALM hardly where the student gives it nothing, and more the "
        "more it gives. Right, a teacher that is sure that it is wrong: CALM pushes without bound where the student is sure."
    )
    return Section(title, note=note, figure=figures.gradients(objective["temperature"]))


def tidal(run: Run) -> Section:
    title = "TIDAL lambda"
    settings = run.recipe.get("objective", {}).get("tidal")
    if not settings:
        return Section(title, note="No recipe.yaml in the run directory.")
    used = run.strategy == "tide_shared" or "tidal" in run.strategy
    note = f"The share of the teacher in TIDAL's target, lambda(p, t); axes: {settings['axes']}."
    if not used:
        note += f" The strategy of this run, {run.strategy}, does not use it: this is the schedule its recipe holds."
    drawn = {name: settings[name] for name in ("init", "maximum", "axes", "schedule")}
    return Section(title, note=note, figure=figures.tidal(**drawn))


def alignment(run: Run) -> Section:
    title = "Alignment"
    if not run.manifest:
        return Section(title, note=f"No manifest.json in {run.aligned or 'the aligned dataset'}: run align.")
    tables = [
        [[part, ""], *([name, value] for name, value in flatten(run.manifest.get(part, {})))]
        for part in ("rows", "tokens", "statistics")
    ]
    return Section(
        title, note=f"From {run.aligned}/manifest.json; tokens and statistics of the training rows.", tables=tables
    )


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers of nested dicts, each with the names on the way to it."""
    for name, entry in value.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(entry, dict):
            yield from flatten(entry, f"{label}: ")
        else:
            yield label, entry


def alignments(run: Run) -> Iterator[Section]:
    """One aligned row for each teacher."""
    try:
        drawn = chunk_view.drawn(run)
    except (BadInput, ValueError) as error:
        yield Section("Sample chunks", note=f"No sample alignment: {error}")
        return
    if not drawn:
        yield Section("Sample chunks", note="No sample alignment: no teachers, or the aligned dataset is not there.")
    for name, content in drawn.items():
        note = f"The first training row, chunk by chunk: student tokens above, those of {name} below."
        yield Section("Sample chunks", note=note, kind="chunks", content=content)


def throughput(runs: dict[str, Run]) -> Section:
    title = "Throughput"
    seconds = [["stage", "seconds"]]
    seconds += [[f"{stage}, {label}", value] for label, run in runs.items() for stage, value in run.seconds.items()]
    held = {label: run for label, run in runs.items() if run.training}
    if not held:
        return Section(title, note="No training lines in metrics.jsonl: distill has not run.", tables=[seconds])
    rows = [["median", "tokens a second", "seconds a step", "tokens in all"]]
    for label, run in held.items():
        lines = run.training
        steps = [0, *(line["step"] for line in lines)]
        pace = [line["seconds"] / (step - before) for line, (before, step) in zip(lines, pairwise(steps), strict=True)]
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        rows.append([label, speed, statistics.median(pace), sum(line["tokens"] for line in lines)])
    note = "Real tokens of student and teachers, padding not counted."
    return Section(title, note=note, figure=figures.throughput(held), tables=[rows, seconds])


def samples(run: Run) -> Iterator[Section]:
    """Generations of the newest evaluated step, a section a task."""
    title = "Sample generations"
    tasks = run.evaluations.get(run.last_step, {})
    held = {task: rows for task in tasks if (rows := run.samples(run.last_step, task))}
    if not held:
        yield Section(title, note="No samples: evaluate has not run.")
    for task, rows in held.items():
        shown = [row for verdict in VERDICTS for row in [r for r in rows if r["correct"] is verdict][:SHOWN_SAMPLES]]
        metric = tasks[task]["metric"]
        content = [row | {"verdict": VERDICTS[row["correct"]] or f"{metric} {number(row[metric])}"} for row in shown]
        note = f"{task}, {run.last_step}: {len(shown)} of {len(rows)}, the first right and the first wrong ones."
        drawn = [row for row in rows if 0 < len(row.get("filled", [])) <= DRAWN_TOKENS][:DRAWN_SAMPLES]
        if drawn:
            note += " The picture shows which forward decided each token of the first ones."
        figure = figures.filling(drawn) if drawn else None
        yield Section(title, note=note, figure=figure, kind="samples", content=content)


def text(title: str, content: str, file: str) -> Section:
    """A file's text as it is."""
    return (
        Section(title, kind="text", content=content)
        if content
        else Section(title, note=f"No {file} in the run directory.")
    )

"""report.html: what is known of a run, section by section. A part that is missing is one line that says why."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_text
from pipeline.core.stage_status import record_status
from pipeline.core.terminal import Console
from pipeline.evaluation.compare import HEADINGS, Comparison, Scored, comparable, compare, table_rows
from pipeline.evaluation.results import read_samples
from pipeline.evaluation.sweep import read_sweep
from pipeline.evaluation.tables import SWEEP_HEADINGS, sweep_rows
from pipeline.reporting import figures
from pipeline.reporting.chunk_view import first_row_chunks
from pipeline.reporting.run_record import Run, read_run
from pipeline.reporting.summary import Model, baseline_folder, read_models, score_table, scored_tasks, summary

VERDICTS = {True: "right", False: "wrong", None: ""}  # None: a graded metric
SHOWN_SAMPLES = 6  # of each verdict
DRAWN_SAMPLES, DRAWN_TOKENS = 3, 40


def write_report(recipe: Recipe, baselines: Sequence[str], teacher_label: str) -> None:
    """Writes report.html and summary.json into the recipe's run directory, and prints the scores.

    Args: see `read_models`. Raises BadInput for a folder that is not there, before anything is written.
    """
    folder = Path(recipe.run_dir)
    for needed in [folder, *map(baseline_folder, baselines)]:
        if not needed.is_dir():
            raise BadInput(f"no run directory {needed}: run distill first")
    if any(folder.iterdir()) and not any((folder / name).exists() for name in ("recipe.yaml", "evaluation", "status")):
        raise BadInput(f"{folder} is no run directory: it has neither recipe.yaml nor evaluation/ nor status/")
    with record_status(folder, "report"):
        run = read_run(folder, recipe)
        models = read_models(run, baselines, teacher_label)
        write_json(folder / "summary.json", summary(run, models))
        write_text(folder / "report.html", render(run, models))
    Console().print(score_table(models) if scored_tasks(models) else "no scores yet: run evaluate")
    print(f"report: {folder / 'report.html'}")


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


def render(run: Run, models: Sequence[Model]) -> str:
    """The whole page; it needs no other file and no network."""
    sections = [
        *score_sections(models),
        *sweeps(models),
        losses(models),
        validation(models),
        probe(run),
        teacher_kl(run),
        gradients(run),
        tidal(run),
        alignment(run),
        *chunks(run),
        throughput(models),
        *samples(models[-1]),
        text("Recipe", run.recipe, "recipe.yaml"),
        text("Environment", run.environment, "environment.json"),
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.jinja").render(run=run, baselines=models[1:-1], sections=sections)


def number(value: Any) -> str:
    """Numbers as people read them; everything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def runs_with(models: Sequence[Model], part: Callable[[Run], Sequence[Any]]) -> list[tuple[Model, Run]]:
    """The models whose run has something of a part of its record."""
    return [(model, model.run) for model in models if model.run and part(model.run)]


def comparisons(models: Sequence[Model]) -> list[Comparison]:
    """All pairs of models on every task, where their samples hold the scores."""
    scored: dict[str, dict[str, Scored]] = {model.label: {} for model in models}
    for task in scored_tasks(models):
        for model in models:
            if score := model.scores.get(task):
                rows = read_samples(model.results, score)
                if comparable(rows):
                    scored[model.label][task] = Scored.of([(score, rows)])
    return compare(scored)


def score_sections(models: Sequence[Model]) -> Iterator[Section]:
    """A section per task."""
    compared = comparisons(models)
    if not scored_tasks(models):
        yield Section("Scores", note="No scores: evaluate has not run.")
    for task in scored_tasks(models):
        scored = [model for model in models if task in model.scores]
        rows: list[list[Any]] = [["model", "strategy", "score", "95% interval", "problems", "decoding"]]
        for model in scored:
            score = model.scores[task]
            preset = score.provenance.preset if score.provenance else ""
            rows.append([model.label, model.strategy, f"{score.value:.3f}", score.bounds, score.n, preset])
        missing = [model.label for model in models if model not in scored]
        note = f"No score of: {', '.join(missing)}." if missing else ""
        note += "".join(f" Alarm, {m.label}: {alarm}." for m in scored for alarm in m.scores[task].alarms)
        pairs = table_rows([c for c in compared if c.task == task])
        tables = [rows, [list(HEADINGS), *pairs]] if pairs else [rows]
        yield Section(f"Scores: {task}", note=note.strip(), figure=figures.scores(scored, task), tables=tables)


def sweeps(models: Sequence[Model]) -> Iterator[Section]:
    """A section per task that was decoded under several thresholds."""
    for task in scored_tasks(models):
        swept = [(model, points) for model in models if (points := read_sweep(model.results, task))]
        if not swept:
            continue
        note = (
            "A threshold decides every token that is at least as probable, and one a forward in any case: the lower, the "
            "fewer forwards. Further right at equal height is better. Bars: 95% intervals over problems."
        )
        rows: list[list[Any]] = [["model", *SWEEP_HEADINGS]]
        rows += [[model.label, *row] for model, points in swept for row in sweep_rows(points)]
        yield Section(f"Tokens per forward: {task}", note=note, figure=figures.sweeps(swept), tables=[rows])


def losses(models: Sequence[Model]) -> Section:
    title = "Training losses"
    trained = runs_with(models, lambda run: run.training)
    if not trained:
        return Section(title, note="No training lines in metrics.jsonl: distill has not run.")
    note = "Thin: one logging line; thick: running mean. The loss is the weighted sum of its terms."
    return Section(title, note=note, figure=figures.losses(trained))


def validation(models: Sequence[Model]) -> Section:
    title = "Validation loss by t"
    validated = runs_with(models, lambda run: run.validation)
    if not validated:
        return Section(
            title,
            note="No validation lines in metrics.jsonl: the recipe has no data.validation, or distill has not run.",
        )
    rows: list[list[Any]] = [["last step", "all t", *(f"t = {t}" for t in validated[0][1].validation[-1].by_t)]]
    rows += [[m.label, run.validation[-1].loss, *run.validation[-1].by_t.values()] for m, run in validated]
    note = "Mean cross-entropy of a masked token of held-out rows, in nats, at fixed t with fixed noise."
    return Section(title, note=note, figure=figures.validation(validated), tables=[rows])


def probe(run: Run) -> Section:
    title = "What the teacher knows"
    if not run.probe:
        return Section(
            title,
            note="No teacher_probe.json: the recipe has no teachers or no data.validation, or distill has not run.",
        )
    note = (
        "Held-out rows before step 0: the teacher sees the truth with a share t of its response masked. With two "
        "views (CompDemo), each reveals half of what the other predicts. A teacher near the dotted line reads through "
        "a wrong tokenizer, template or mask."
    )
    return Section(title, note=note, figure=figures.probe(run.probe))


def teacher_kl(run: Run) -> Section:
    title = "KL to the teachers"
    if not run.teacher_kl:
        return Section(
            title,
            note="No distance.json: the recipe has no teachers or no data.validation, or distill has not run.",
        )
    names = list(next(iter(run.teacher_kl.values())))
    rows: list[list[Any]] = [["mean over t, nats", *names]]
    rows += [[f"step {step}", *(statistics.mean(kl[n].values()) for n in names)] for step, kl in run.teacher_kl.items()]
    note = (
        "KL(teacher || student) on held-out rows before training and after, T = 1. Of a masked token's distribution where "
        "the tokenizer is shared; otherwise of a true chunk's probability, the event that both tokenizers have."
    )
    return Section(title, note=note, figure=figures.teacher_kl(names, run.teacher_kl), tables=[rows])


def gradients(run: Run) -> Section:
    title = "Gradient of CALM and Reverse CALM"
    if not run.objective:
        return Section(title, note="No recipe.yaml in the run directory.")
    note = (
        "How hard a chunk pulls at the student's log-probability of it (below 0: upwards). Left, a teacher that is sure of it: "
        "CALM pulls alike whatever the student knows, Reverse CALM hardly where the student gives it nothing, and more the "
        "more it gives. Right, a teacher that is sure that it is wrong: CALM pushes without bound where the student is sure."
    )
    return Section(title, note=note, figure=figures.gradients(run.objective.temperature))


def tidal(run: Run) -> Section:
    title = "TIDAL lambda"
    if not run.objective:
        return Section(title, note="No recipe.yaml in the run directory.")
    used = run.strategy == "tide_shared" or "tidal" in run.strategy
    note = f"The share of the teacher in TIDAL's target, lambda(p, t); axes: {run.objective.axes}."
    if not used:
        note += f" The strategy of this run, {run.strategy}, does not use it: this is the schedule its recipe holds."
    return Section(title, note=note, figure=figures.tidal(run.objective))


def alignment(run: Run) -> Section:
    title = "Alignment"
    if not run.alignment:
        return Section(title, note=f"No manifest.json in {run.aligned}: run align.")
    parts = {"rows": run.alignment.rows, "tokens": run.alignment.tokens, "statistics": run.alignment.statistics}
    tables: list[list[list[Any]]] = [[[part, ""], *map(list, numbers)] for part, numbers in parts.items()]
    return Section(
        title, note=f"From {run.aligned}/manifest.json; tokens and statistics of the training rows.", tables=tables
    )


def chunks(run: Run) -> Iterator[Section]:
    """One aligned row for each teacher."""
    try:
        by_teacher = first_row_chunks(run)
    except (BadInput, ValueError) as error:
        yield Section("Sample chunks", note=f"No sample alignment: {error}")
        return
    if not by_teacher:
        yield Section("Sample chunks", note="No sample alignment: no teachers, or the aligned dataset is not there.")
    for name, content in by_teacher.items():
        note = f"The first training row, chunk by chunk: student tokens above, those of {name} below."
        yield Section("Sample chunks", note=note, kind="chunks", content=content)


def throughput(models: Sequence[Model]) -> Section:
    title = "Throughput"
    seconds: list[list[Any]] = [["stage", "seconds"]]
    seconds += [[f"{stage}, {m.label}", value] for m in models if m.run for stage, value in m.run.seconds.items()]
    trained = runs_with(models, lambda run: run.training)
    if not trained:
        return Section(title, note="No training lines in metrics.jsonl: distill has not run.", tables=[seconds])
    rows: list[list[Any]] = [["median", "tokens per second", "seconds per step", "tokens in all"]]
    for model, run in trained:
        lines = run.training
        steps = [0, *(line["step"] for line in lines)]
        pace = [line["seconds"] / (step - before) for line, (before, step) in zip(lines, pairwise(steps), strict=True)]
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        rows.append([model.label, speed, statistics.median(pace), sum(line["tokens"] for line in lines)])
    note = "Real tokens of student and teachers, padding not counted."
    return Section(title, note=note, figure=figures.throughput(trained), tables=[rows, seconds])


def samples(model: Model) -> Iterator[Section]:
    """Generations of the run's newest evaluated step, a section per task."""
    title = "Sample generations"
    by_task = {task: rows for task, score in model.scores.items() if (rows := read_samples(model.results, score))}
    if not by_task:
        yield Section(title, note="No samples: evaluate has not run.")
    for task, rows in by_task.items():
        shown = [row for verdict in VERDICTS for row in [r for r in rows if r.correct is verdict][:SHOWN_SAMPLES]]
        content = [(row, VERDICTS[row.correct] or f"{row.metric} {number(row.value)}") for row in shown]
        note = f"{task}, {model.results.name}: {len(shown)} of {len(rows)}, the first right and the first wrong ones."
        drawn = [row for row in rows if row.filling and 0 < len(row.filling.filled) <= DRAWN_TOKENS][:DRAWN_SAMPLES]
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

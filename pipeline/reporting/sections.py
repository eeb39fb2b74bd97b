"""The report's sections. A part that the run does not use has none; one that is still missing is a line that says why."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from pipeline.config.recipe import Tidal
from pipeline.core.errors import BadInput
from pipeline.evaluation.compare import Comparison, Scored, comparable, compare
from pipeline.evaluation.results import TaskSample, read_samples
from pipeline.evaluation.sweep import read_sweep, swept_tasks
from pipeline.evaluation.tables import SWEEP_HEADINGS, sweep_rows
from pipeline.method.strategies import STRATEGIES, Strategy, resolve
from pipeline.reporting import figures
from pipeline.reporting.chunk_view import first_row_chunks
from pipeline.reporting.headline import points
from pipeline.reporting.run_record import RunRecord
from pipeline.reporting.summary import Model, scored_tasks, strategy_name

VERDICTS = {True: "right", False: "wrong", None: ""}  # None: a graded metric
SHOWN_SAMPLES = 6  # of each verdict
PLOTTED_SAMPLES, PLOTTED_TOKENS = 3, 40
UNTRAINED = "No training lines in metrics.jsonl: distill has not run."
TRAINING = {
    "certainty": "certainty: entropy of tokens that are right",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "memory_gb": "peak memory of a rank, GB",
}

Rows = list[list[Any]]
"""Cells; the first row is the heading."""


@dataclass
class Section:
    """A heading and what stands below it, in this order: note, legend, pictures and narrow tables side by side, wide tables, and
    what `kind` makes of `content`."""

    title: str
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()
    """Colour and label of the lines."""
    figures: Sequence[Markup] = ()
    beside: Sequence[Rows] = ()
    tables: Sequence[Rows] = ()
    kind: str = ""
    content: Any = None

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


def sections(run: RunRecord, models: Sequence[Model], compared: Sequence[Comparison]) -> Iterator[Section]:
    """All of them, in the order of the page."""
    yield from scores(models, compared)
    yield from sweeps(models)
    yield losses(models)
    if run.validated:
        yield validation(models)
    if run.validated and run.teachers:
        yield probe(run)
        yield teacher_kl(run)
    if run.temperature and any(strategy.family == "calm" for strategy in strategies(run)):
        yield gradients(run.temperature)
    if run.tidal and any(strategy.tidal for strategy in strategies(run)):
        yield tidal(run.tidal, models)
    yield alignment(run)
    if run.teachers:
        yield from chunks(run)
    yield throughput(models)
    yield from samples(models[-1])
    yield text("Recipe", run.recipe, "recipe.yaml")
    yield text("Environment", run.environment, "environment.json")


def strategies(run: RunRecord) -> list[Strategy]:
    """What the teachers' terms are, as far as the aligned dataset says which tokenizer is shared."""
    if run.strategy not in STRATEGIES:
        return []
    shared = run.alignment.shared_vocab if run.alignment else {}
    try:
        return [resolve(run.strategy, shared_tokenizer=bool(shared.get(name))) for name in run.teachers]
    except ValueError:  # a KL whose dataset is not at hand
        return [STRATEGIES[run.strategy]]


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


def runs_with(models: Sequence[Model], part: Callable[[RunRecord], Sequence[Any]]) -> list[tuple[Model, RunRecord]]:
    """The models whose run has something of a part of its record."""
    return [(model, model.run) for model in models if model.run and part(model.run)]


def legend(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Of lines that are models."""
    return [(model.colour, model.label) for model in models]


def scores(models: Sequence[Model], compared: Sequence[Comparison]) -> Iterator[Section]:
    """A section per task."""
    if not scored_tasks(models):
        yield Section("Scores", note="No scores: evaluate has not run.")
    for task in scored_tasks(models):
        scored = [model for model in models if task in model.scores]
        rows: Rows = [["model", "strategy", "score", "95% interval", "problems", "decoding"]]
        for model in scored:
            score = model.scores[task]
            preset = score.provenance.preset if score.provenance else ""
            named = [model.label, strategy_name(model.strategy)]
            rows.append([*named, f"{score.value:.3f}", score.bounds, score.n, preset])
        missing = [model.label for model in models if model not in scored]
        note = f"No score of: {', '.join(missing)}." if missing else ""
        note += "".join(f" Alarm, {m.label}: {alarm}." for m in scored for alarm in m.scores[task].alarms)
        # the run's own first
        pairs = sorted((c for c in compared if c.task == task), key=lambda c: c.b != models[-1].label)
        yield Section(
            f"Scores: {task}",
            note=note.strip(),
            figures=[figures.scores(scored, task)],
            beside=[rows],
            tables=[differences(pairs)] if pairs else [],
        )


def differences(pairs: Sequence[Comparison]) -> Rows:
    """Every pair of models on one task, in words."""
    rows: Rows = [["models", "difference", "scores", "problems", "p (Holm)", "real?"]]
    for c in pairs:
        doubt = f", but {', '.join(c.differs_in)} differ" if c.differs_in else ""
        verdict = ("yes" if c.real else "no") + doubt
        both = f"{c.value_b:.3f} and {c.value_a:.3f}"
        rows.append([f"{c.b} - {c.a}", points(c), both, c.n, f"{c.p_holm:.2g}", verdict])
    return rows


def sweeps(models: Sequence[Model]) -> Iterator[Section]:
    """A section per task that was decoded under several thresholds, whether it was scored otherwise or not."""
    swept_alone = sorted({task for model in models for task in swept_tasks(model.results)} - set(scored_tasks(models)))
    for task in [*scored_tasks(models), *swept_alone]:
        swept = [(model, points) for model in models if (points := read_sweep(model.results, task))]
        if not swept:
            continue
        note = (
            "A threshold decides every token that is at least as probable, and one per forward in any case: the lower, the "
            "fewer forwards. Further right at equal height is better. Bars: 95% intervals over problems."
        )
        rows: Rows = [["model", *SWEEP_HEADINGS]]
        rows += [[model.label, *row] for model, points in swept for row in sweep_rows(points)]
        yield Section(
            f"Tokens per forward: {task}",
            note=note,
            legend=legend([model for model, _ in swept]),
            figures=figures.sweeps(swept),
            tables=[rows],
        )


def losses(models: Sequence[Model]) -> Section:
    """The loss and its terms, and how the optimizer went."""
    title = "Training"
    trained = runs_with(models, lambda run: run.training)
    if not trained:
        return Section(title, note=UNTRAINED)
    terms = {"loss": "loss", "cross_entropy": "cross-entropy"}
    terms |= {name: f"distillation: {name}" for _, run in trained for name in run.teachers}
    plots = [figures.over_steps(having(trained, name), name, label, smoothed=True) for name, label in terms.items()]
    plots += [figures.over_steps(logged, n, label) for n, label in TRAINING.items() if (logged := having(trained, n))]
    note = (
        "Thin: one logging line; thick: running mean. The loss is the weighted sum of its terms; losses of different strategies do "
        "not compare."
    )
    if any(strategy.tidal for _, run in trained for strategy in strategies(run)):
        note += " TIDAL's target moves to the teacher as lambda grows: its loss may rise while the student learns."
    return Section(title, note=note, legend=legend([model for model, _ in trained]), figures=plots)


def having(runs: Sequence[tuple[Model, RunRecord]], name: str) -> list[tuple[Model, RunRecord]]:
    """Those whose training lines hold a value of this name."""
    return [(model, run) for model, run in runs if figures.series(run.training, name)[0]]


def validation(models: Sequence[Model]) -> Section:
    """A table, and a picture per run that was validated more than once."""
    title = "Validation loss by t"
    validated = runs_with(models, lambda run: run.validation)
    if not validated:
        return Section(title, note="No validation lines in metrics.jsonl: distill has not run.")
    ts = list(validated[0][1].validation[-1].by_t)
    values = [value for _, run in validated for line in run.validation for value in line.by_t.values()]
    bounds = min(values), max(values)
    plots = [figures.validation(model, run, bounds) for model, run in validated if len(run.validation) > 1]
    rows: Rows = [["last step", "all t", *(f"t = {t}" for t in ts)]]
    rows += [[m.label, run.validation[-1].loss, *run.validation[-1].by_t.values()] for m, run in validated]
    return Section(
        title,
        note="Mean cross-entropy of a masked token of held-out rows, in nats, at fixed t with fixed noise.",
        legend=[(colour, f"t = {t}") for t, colour in zip(ts, figures.by_t(ts), strict=True)] if plots else [],
        figures=plots,
        tables=[rows],
    )


def probe(run: RunRecord) -> Section:
    """What every teacher knew before training."""
    title = "What the teacher knows"
    if not run.probe:
        return Section(title, note="No teacher_probe.json: distill has not run, or the teachers' answers are stored.")
    return Section(
        title,
        note="Held-out rows before step 0: the teacher sees the truth with a share t of its response masked. With two "
        "views (CompDemo), each reveals half of what the other predicts. A teacher near the dotted line, a uniform guess, "
        "reads through a wrong tokenizer, template or mask.",
        legend=[(colour, label) for label, _, colour in figures.VIEWS.values()],
        figures=[picture for name, known in run.probe.items() for picture in figures.probe(name, known)],
    )


def teacher_kl(run: RunRecord) -> Section:
    """A picture per teacher."""
    title = "KL to the teachers"
    if not run.teacher_kl:
        return Section(
            title, note="No distance.json: distill has not run, or there are no teachers or no held-out rows."
        )
    names = list(next(iter(run.teacher_kl.values())))
    rows: Rows = [["mean over t, nats", *names]]
    rows += [[f"step {step}", *(statistics.mean(kl[n].values()) for n in names)] for step, kl in run.teacher_kl.items()]
    note = (
        "KL(teacher || student) on held-out rows before training and after, T = 1. Of a masked token's distribution where "
        "the tokenizer is shared; otherwise of a true chunk's probability, the event that both tokenizers have."
    )
    return Section(
        title, note=note, figures=[figures.teacher_kl(name, run.teacher_kl) for name in names], beside=[rows]
    )


def gradients(temperature: float) -> Section:
    """Of the objective over chunks."""
    note = (
        "How hard a chunk pulls at the student's log-probability of it (below 0: upwards). First, a teacher that is sure of it: "
        "CALM pulls alike whatever the student knows, Reverse CALM hardly where the student gives it nothing, and more the "
        "more it gives. Second, a teacher that is sure that it is wrong: CALM pushes without bound where the student is sure."
    )
    colours = [(colour, label) for label, colour in figures.DIRECTIONS.values()]
    return Section(
        "Gradient of CALM and Reverse CALM", note=note, legend=colours, figures=figures.gradients(temperature)
    )


def tidal(schedule: Tidal, models: Sequence[Model]) -> Section:
    """The schedule of the recipe, and what the training lines say of it."""
    note = f"The share of the teacher in TIDAL's target, lambda(p, t); axes: {schedule.axes}."
    plots = [figures.tidal(schedule)]
    if logged := having(runs_with(models, lambda run: run.training), "lambda"):
        plots.append(figures.over_steps(logged, "lambda", "lambda at t = 0"))
    return Section("TIDAL lambda", note=note, figures=plots)


def alignment(run: RunRecord) -> Section:
    """The manifest's numbers."""
    title = "Alignment"
    if not run.alignment:
        return Section(title, note=f"No manifest.json in {run.aligned}: run align.")
    parts: dict[str, Sequence[tuple[str, float | str]]]
    parts = {"rows": run.alignment.rows, "tokens": run.alignment.tokens, "statistics": run.alignment.statistics}
    tables: list[Rows] = [[[part, ""], *map(list, numbers)] for part, numbers in parts.items() if numbers]
    note = f"From {run.aligned}/manifest.json; tokens and statistics of the training rows."
    return Section(title, note=note, beside=tables)


def chunks(run: RunRecord) -> Iterator[Section]:
    """One aligned row for each teacher."""
    try:
        by_teacher = first_row_chunks(run)
    except (BadInput, ValueError) as error:
        yield Section("Sample chunks", note=f"No sample alignment: {error}")
        return
    if not by_teacher:
        yield Section("Sample chunks", note="No sample alignment: the aligned dataset is not there.")
    for name, content in by_teacher.items():
        note = f"The first training row, chunk by chunk: student tokens above, those of {name} below."
        yield Section("Sample chunks", note=note, kind="chunks", content=content)


def throughput(models: Sequence[Model]) -> Section:
    """Pace of every training, and how long the stages took."""
    title = "Throughput"
    seconds: Rows = [["stage", "seconds, last start"]]
    seconds += [[f"{stage}, {m.label}", value] for m in models if m.run for stage, value in m.run.seconds.items()]
    trained = runs_with(models, lambda run: run.training)
    if not trained:
        return Section(title, note=UNTRAINED, beside=[seconds] if len(seconds) > 1 else [])
    rows: Rows = [["median", "tokens per second", "seconds per step", "tokens in all"]]
    for model, run in trained:
        lines = run.training
        steps = [0, *(line["step"] for line in lines)]
        pace = [line["seconds"] / (step - before) for line, (before, step) in zip(lines, pairwise(steps), strict=True)]
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        rows.append([model.label, speed, statistics.median(pace), sum(line["tokens"] for line in lines)])
    return Section(
        title,
        note="Real tokens of student and teachers, padding not counted.",
        legend=legend([model for model, _ in trained]),
        figures=[figures.over_steps(trained, "tokens_per_second", "tokens / s")],
        beside=[rows, seconds],
    )


def samples(model: Model) -> Iterator[Section]:
    """Generations of the run's newest evaluated step, a section per task."""
    title = "Sample generations"
    by_task = {task: rows for task, score in model.scores.items() if (rows := read_samples(model.results, score))}
    if not by_task:
        yield Section(title, note="No samples: evaluate has not run.")
    for task, rows in by_task.items():
        shown = [row for verdict in VERDICTS for row in [r for r in rows if r.correct is verdict][:SHOWN_SAMPLES]]
        content = [(row, VERDICTS[row.correct] or f"{row.metric} {row.value}") for row in shown]
        note = f"{task}, {model.results.name}: {len(shown)} of {len(rows)}, the first right and the first wrong ones."
        plots = [row for row in rows if _plottable(row)][:PLOTTED_SAMPLES]
        if plots:
            note += " The picture shows which forward decided each token of the first ones."
        yield Section(title, note=note, figures=list(map(figures.filling, plots)), kind="samples", content=content)


def _plottable(row: TaskSample) -> bool:
    return row.filling is not None and 0 < len(row.filling.filled) <= PLOTTED_TOKENS


def text(title: str, content: str, file: str) -> Section:
    """A file's text as it is."""
    if not content:
        return Section(title, note=f"No {file} in the run directory.")
    return Section(title, kind="text", content=content)

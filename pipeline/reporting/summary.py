"""The models that a report compares, and summary.json: their scores and numbers of the run, for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.colors import hsv_to_rgb, to_hex
from rich.table import Table

from pipeline.core.errors import BadInput
from pipeline.evaluation.results import Score, read_scores
from pipeline.evaluation.tables import narrow_table
from pipeline.reporting.run_record import RunRecord, read_run

VIOLET, ORANGE, GREEN, BLUE, PINK, BROWN = "#8b6fd6", "#d9822b", "#1f9e89", "#3f83c9", "#c9568f", "#94764a"
BASELINES = (ORANGE, BLUE, PINK, BROWN)
STRATEGY_NAMES = {
    "tide_cross": "TIDE-Cross",
    "tide_shared": "TIDE-Shared",
    "calm": "CALM",
    "reverse_calm": "Reverse CALM",
    "reverse_kl_calm": "reverse KL CALM",
    "calm_tidal": "CALM-TIDAL",
    "reverse_calm_tidal": "Reverse CALM-TIDAL",
    "kl": "KL",
    "reverse_kl": "reverse KL",
    "tidal": "TIDAL",
    "reverse_tidal": "reverse TIDAL",
    "bd3lm": "no teacher",
}


@dataclass(frozen=True)
class Model:
    """One row of the report."""

    label: str
    colour: str
    results: Path
    """Folder of the scores and samples: RUN/evaluation/STEP or LABEL."""
    scores: Mapping[str, Score]
    """By task."""
    run: RunRecord | None
    """None where there is no more than scores, as of a teacher."""

    @property
    def strategy(self) -> str:
        return self.run.strategy if self.run else ""


def read_models(run: RunRecord, baselines: Sequence[str], teacher_label: str) -> list[Model]:
    """The teacher, if it has scores, the baselines in their order, and the run itself, whose newest evaluated step counts.

    Args:
        baselines: [LABEL=]FOLDER each: a run directory, or a folder of results, RUN/evaluation/LABEL. Without a label, a
            run that has no teachers is called `undistilled`; other folders go by their name.
        teacher_label: evaluation/LABEL of the run holds the teacher's scores.

    Raises BadInput for two models of one label.
    """
    teacher = _scored("teacher", VIOLET, run.folder / "evaluation" / teacher_label)
    models = [teacher] if teacher.scores else []
    models += [_baseline(text, colour) for text, colour in zip(baselines, _colours(len(baselines)), strict=True)]
    models.append(_of_run("distilled" if baselines or run.teachers else "undistilled", GREEN, run))
    labels = [model.label for model in models]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise BadInput(f"--baseline: two models are called {twice[0]}: write LABEL=FOLDER")
    return models


def _colours(count: int) -> list[str]:
    """Of baselines: the named ones, then as many hues as it takes; all of them readable on light and on dark."""
    more = count - len(BASELINES)
    return [*BASELINES, *(to_hex(tuple(hsv_to_rgb((i / more, 0.55, 0.72)))) for i in range(more))][:count]


def baseline_folder(text: str) -> Path:
    """The folder of [LABEL=]FOLDER."""
    return Path(text.rpartition("=")[2])


def _baseline(text: str, colour: str) -> Model:
    label, folder = text.rpartition("=")[0], baseline_folder(text)
    if folder.parent.name == "evaluation":
        return _scored(label or folder.name, colour, folder)
    run = read_run(folder)
    return _of_run(label or (folder.name if run.teachers else "undistilled"), colour, run)


def _of_run(label: str, colour: str, run: RunRecord) -> Model:
    return Model(label, colour, run.folder / "evaluation" / run.last_step, run.evaluations.get(run.last_step, {}), run)


def _scored(label: str, colour: str, folder: Path) -> Model:
    scores = {task: score for task, score in read_scores(folder).items() if score.value is not None}
    return Model(label, colour, folder, scores, None)


def scored_tasks(models: Sequence[Model]) -> list[str]:
    """Every task that a model has a score of; those of the run's recipe first, in its order."""
    known = {task for model in models for task in model.scores}
    first = [task for task in models[-1].run.tasks if task in known] if models[-1].run else []
    return [*first, *sorted(known - set(first))]


def strategy_name(strategy: str) -> str:
    """As people write it."""
    return STRATEGY_NAMES.get(strategy, strategy)


def score_table(models: Sequence[Model]) -> Table:
    """For the terminal: a row per task and model."""
    table = narrow_table("Scores", "task", "model", "strategy", "score", "95% interval", "problems")
    for task in scored_tasks(models):
        for model in models:
            if score := model.scores.get(task):
                numbers = f"{score.value:.3f}", score.bounds, str(score.n)
                table.add_row(task, model.label, strategy_name(model.strategy), *numbers)
    return table


def summary(run: RunRecord, models: Sequence[Model]) -> dict[str, Any]:
    """The contents of summary.json: scores of the first task and numbers of the run; only what is known has an entry."""
    first = next(iter(scored_tasks(models)), "")
    seconds = dict(run.seconds)
    for model in models[:-1]:
        if model.run:
            seconds |= {f"{model.label}_{stage}": spent for stage, spent in model.run.seconds.items()}
    entries = {
        "scores": {model.label: _headline(model.scores[first]) for model in models if first in model.scores},
        "world_size": run.world_size,
        "expert_parallel_size": _one_or_all(run.expert_parallel_size),
        "zero_stage": run.zero_stage,
        "strategy": run.strategy or None,
        "seconds": seconds,
    }
    return {name: value for name, value in entries.items() if value is not None}


def _headline(score: Score) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ("task", "metric", "value", "n", "low", "high")}


def _one_or_all(sizes: Mapping[str, int]) -> int | dict[str, int] | None:
    """A single number where all teachers agree."""
    return next(iter(sizes.values())) if len(set(sizes.values())) == 1 else dict(sizes) or None

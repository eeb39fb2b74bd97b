"""report.html: what is known of a run, section by section; and summary.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_text
from pipeline.core.stage_status import read_history, record_status
from pipeline.core.terminal import Console
from pipeline.reporting.headline import headline
from pipeline.reporting.run_record import RunRecord, read_run
from pipeline.reporting.sections import comparisons, sections
from pipeline.reporting.summary import (
    Model,
    baseline_folder,
    read_models,
    score_table,
    scored_tasks,
    strategy_name,
    summary,
)


def write_report(recipe: Recipe, baselines: Sequence[str] | None, teacher_label: str) -> None:
    """Writes report.html and summary.json into the recipe's run directory, and prints the scores.

    Args: see `read_models`; without baselines (None), those of the last report count. Raises BadInput for a folder that is not there, before anything is written.
    """
    folder = Path(recipe.run_dir)
    baselines = _remembered(folder) if baselines is None else baselines
    for needed in [folder, *map(baseline_folder, baselines)]:
        if not needed.is_dir():
            raise BadInput(f"no run directory {needed}: run distill first")
    if any(folder.iterdir()) and not any((folder / name).exists() for name in ("recipe.yaml", "evaluation", "status")):
        raise BadInput(f"{folder} is no run directory: it has neither recipe.yaml nor evaluation/ nor status/")
    with record_status(folder, "report") as status:
        run = read_run(folder, recipe)
        models = read_models(run, baselines, teacher_label)
        write_json(folder / "summary.json", summary(run, models))
        write_text(folder / "report.html", render(run, models))
        status["baselines"] = list(baselines)
    Console().print(score_table(models) if scored_tasks(models) else "no scores yet: run evaluate")
    print(f"report: {folder / 'report.html'}")


def _remembered(run_dir: Path) -> list[str]:
    """The baselines of the last report that was written."""
    reports = [line for line in read_history(run_dir) if line["stage"] == "report" and "baselines" in line]
    return [str(folder) for folder in reports[-1]["baselines"]] if reports else []


def render(run: RunRecord, models: Sequence[Model]) -> str:
    """The whole page; it needs no other file and no network."""
    compared = comparisons(models)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.jinja").render(
        run=run,
        strategy=strategy_name(run.strategy),
        headline=headline(run, models, compared),
        baselines=[model for model in models[:-1] if model.label != "teacher"],
        sections=list(sections(run, models, compared)),
    )


def number(value: Any) -> str:
    """Numbers as people read them; everything else as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

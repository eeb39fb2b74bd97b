"""The first sentence of the report: what came out, when, on what, from which code and in how long."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pipeline.evaluation.compare import Comparison
from pipeline.reporting.run_record import RunRecord
from pipeline.reporting.summary import Model, scored_tasks, strategy_name


def headline(run: RunRecord, models: Sequence[Model], compared: Sequence[Comparison]) -> str:
    """One sentence, of what is known."""
    parts = [_outcome(models, compared), _training(run)]
    return "; ".join(part for part in parts if part) + "."


def points(comparison: Comparison, against: str = "") -> str:
    """A difference as people say it: `+14.0 points against calm, 95% interval +9.1 to +18.7`; plain numbers where the scores
    are no shares."""
    share = all(0 <= value <= 1 for value in (comparison.value_a, comparison.value_b))
    scale, unit, digits = (100, " points", 1) if share else (1, "", 3)
    of, low, high = (f"{scale * x:+.{digits}f}" for x in (comparison.difference, comparison.low, comparison.high))
    return f"{of}{unit}{against and f' against {against}'}, 95% interval {low} to {high}"


def _outcome(models: Sequence[Model], compared: Sequence[Comparison]) -> str:
    model = models[-1]
    task = next((task for task in scored_tasks(models) if task in model.scores), None)
    if task is None:
        return "No scores yet: evaluate has not run"
    score = model.scores[task]
    named = model.label[:1].upper() + model.label[1:]
    who = f"{named} ({strategy_name(model.strategy)})" if model.strategy else named
    said = f"{who} scores {score.value:.3f} on {task} ({score.n:,} problems)"
    against = [c for c in compared if c.task == task and c.b == model.label]
    untaught = {m.label for m in models[:-1] if m.run and not m.run.teachers}
    chosen = next((c for c in against if c.a in untaught), against[0] if against else None)
    if chosen is None:
        return said
    doubt = "" if chosen.real else f", which may be chance (p = {chosen.p_holm:.2g})"
    return f"{said}, {points(chosen, chosen.a)}{doubt}"


def _training(run: RunRecord) -> str:
    if not run.training:
        return "nothing has been trained yet"
    done, seconds = int(run.training[-1]["step"]), sum(line["seconds"] for line in run.training)
    steps = f"{done:,} steps" if done == run.steps or not run.steps else f"{done:,} of {run.steps:,} steps"
    said = f"trained {steps} in {timedelta(seconds=round(seconds))}"
    if run.started:
        said += f" over {len(run.started)} start{'s' * (len(run.started) > 1)}, the last on "
        said += f"{datetime.fromisoformat(run.started[-1]):%-d %B %Y}"
    if run.device:
        said += f", {run.world_size or 1} rank{'s' * ((run.world_size or 1) > 1)} on {run.device}"
    return said + (f", commit {run.commit[:10]}{'-dirty' * run.commit.endswith('-dirty')}" if run.commit else "")

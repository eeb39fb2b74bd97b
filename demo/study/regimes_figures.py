"""Figures of docs/reliability.md, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from demo.study.evidence_figures import STYLE, save
from pipeline.experiments.results import t_interval
from pipeline.reporting.summary import GREEN, ORANGE, VIOLET
from pipeline.training.teacher_probe import TeacherProbe


@dataclass(frozen=True)
class Point:
    """A strategy with one teacher; differences of each seed."""

    pipeline: str
    strategy: str
    reliability: float
    over_undistilled: Sequence[float]
    over_baseline: Sequence[float]
    """zeros for the baseline objective itself"""


def probes(teachers: Mapping[str, TeacherProbe], path: Path) -> None:
    """Accuracy by t with one view (solid) and two (dashed): a row of panels for each architecture."""
    rows = list(dict.fromkeys(name.partition("_")[0] for name in teachers))
    columns = list(dict.fromkeys(name.partition("_")[2] for name in teachers))
    least = min(share for known in teachers.values() for shares in known.accuracy.values() for share in shares)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * len(columns), 1.7 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
        for name, known in teachers.items():
            row, _, column = name.partition("_")
            axes = panels[rows.index(row), columns.index(column)]
            axes.plot(known.t, known.accuracy["one_view"], ".-", color=VIOLET, label="one view")
            axes.plot(known.t, known.accuracy["two_views"], ".--", color=GREEN, label="two views")
            axes.set_title(name, fontsize=8)
            axes.set(ylim=(least - 0.02, 1.01))
        panels[0, 0].legend(fontsize=6, loc="lower left")
        save(figure, path)


def gains(points: Sequence[Point], path: Path) -> None:
    """Gain over undistilled (above) and over the baseline objective (below) against the teacher's reliability, with 95% intervals
    over seeds: a column for each pipeline."""
    pipelines = list(dict.fromkeys(point.pipeline for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(pipelines), 5.6), layout="constrained")
        panels = figure.subplots(2, len(pipelines), squeeze=False, sharex=True, sharey="row")
        for (above, below), pipeline in zip(panels.T, pipelines, strict=True):
            of_pipeline = [point for point in points if point.pipeline == pipeline]
            for strategy, colour in zip(
                dict.fromkeys(p.strategy for p in of_pipeline), (ORANGE, VIOLET, GREEN), strict=True
            ):
                chosen = sorted((p for p in of_pipeline if p.strategy == strategy), key=lambda p: p.reliability)
                x = [p.reliability for p in chosen]
                _intervals(above, x, [p.over_undistilled for p in chosen], colour, strategy)
                if any(map(any, (p.over_baseline for p in chosen))):
                    _intervals(below, x, [p.over_baseline for p in chosen], colour, strategy)
            for axes in (above, below):
                axes.axhline(0, color="0.5", linewidth=1)
                axes.legend(fontsize=7)
            above.set(title=pipeline)
            below.set(xlabel="teacher's reliability")
        panels[0, 0].set(ylabel="gain over undistilled")
        panels[1, 0].set(ylabel="gain over the baseline objective")
        save(figure, path)


def _intervals(axes: Axes, x: Sequence[float], differences: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """Means and Student's 95% intervals."""
    middle = np.array([mean(d) for d in differences])
    low, high = np.array([t_interval(d) for d in differences]).T
    axes.errorbar(
        x, middle, yerr=[middle - low, high - middle], fmt="o-", color=colour, linewidth=1, capsize=3, label=label
    )

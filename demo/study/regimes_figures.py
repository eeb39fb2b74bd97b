"""Figures of docs/reliability.md, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.figure import Figure

from demo.study.evidence_figures import STYLE, save
from pipeline.experiments.results import t_interval
from pipeline.reporting.summary import GREEN, VIOLET
from pipeline.training.teacher_probe import TeacherProbe


@dataclass(frozen=True)
class Point:
    """A native strategy beside its baseline objective, with one teacher."""

    pipeline: str
    strategy: str
    reliability: float
    gains: Sequence[float]
    """of each seed"""


def probes(teachers: Mapping[str, TeacherProbe], path: Path) -> None:
    """Accuracy by t with one view (solid) and two (dashed): a row of panels for each architecture."""
    rows = list(dict.fromkeys(name.partition("_")[0] for name in teachers))
    columns = list(dict.fromkeys(name.partition("_")[2] for name in teachers))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * len(columns), 1.7 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
        for name, known in teachers.items():
            row, _, column = name.partition("_")
            axes = panels[rows.index(row), columns.index(column)]
            axes.plot(known.t, known.accuracy["one_view"], ".-", color=VIOLET, label="one view")
            axes.plot(known.t, known.accuracy["two_views"], ".--", color=GREEN, label="two views")
            axes.set_title(name, fontsize=8)
            axes.set(ylim=(0, 1.03))
        panels[0, 0].legend(fontsize=6, loc="lower left")
        save(figure, path)


def gains(points: Sequence[Point], path: Path) -> None:
    """Native minus baseline objective over the teacher's reliability, with 95% intervals over seeds: a panel for each pipeline."""
    pipelines = list(dict.fromkeys(point.pipeline for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(pipelines), 3.2), layout="constrained")
        for axes, pipeline in zip(figure.subplots(1, len(pipelines), squeeze=False)[0], pipelines, strict=True):
            own = [point for point in points if point.pipeline == pipeline]
            for strategy, colour in zip(dict.fromkeys(point.strategy for point in own), (VIOLET, GREEN), strict=True):
                chosen = sorted((p for p in own if p.strategy == strategy), key=lambda p: p.reliability)
                ends = [t_interval(p.gains) for p in chosen]
                middle = [mean(p.gains) for p in chosen]
                errors = [[m - low for m, (low, _) in zip(middle, ends, strict=True)]]
                errors += [[high - m for m, (_, high) in zip(middle, ends, strict=True)]]
                x = [p.reliability for p in chosen]
                axes.errorbar(x, middle, yerr=errors, fmt="o", color=colour, capsize=3, label=strategy)
            axes.axhline(0, color="0.5", linewidth=1)
            axes.set(xlabel="teacher's reliability", ylabel="minus the baseline objective", title=pipeline)
            axes.legend(fontsize=7)
        save(figure, path)

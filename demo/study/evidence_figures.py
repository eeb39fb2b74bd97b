"""Figures of docs/evidence.md, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from pipeline.experiments.results import Line
from pipeline.method.tidal import tidal_lambda
from pipeline.reporting.figures import SURE, UNSURE, VIEWS, plot_gradient
from pipeline.reporting.picture import PLAIN
from pipeline.reporting.summary import GREEN, ORANGE, VIOLET
from pipeline.training.held_out import TIMESTEPS
from pipeline.training.teacher_probe import TeacherProbe

STYLE = PLAIN | {"svg.hashsalt": "evidence"}


def probe(teachers: Mapping[str, TeacherProbe], path: Path) -> None:
    """Share of held-out masked tokens whose truth the teacher ranks first, by t, with one view and two."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        for axes, (name, known) in zip(
            figure.subplots(1, len(teachers), squeeze=False)[0], teachers.items(), strict=True
        ):
            for view, (label, marker, colour) in VIEWS.items():
                axes.plot(known.t, known.accuracy[view], marker, color=colour, label=label)
            axes.set(xlabel="t", title=f"teacher {name}: true token ranked first", ylim=(0, 1.03))
        figure.axes[0].legend(loc="lower left")
        save(figure, path)


def gradients(path: Path, temperature: float = 2.0) -> None:
    """`plot_gradient` for a sure and an unsure teacher, as a file."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        for axes, teacher in zip(figure.subplots(1, 2), (SURE, UNSURE), strict=True):
            plot_gradient(axes, temperature, teacher)
        figure.axes[0].set_ylabel(f"dL / d log-probability (T = {temperature:g})")
        figure.axes[0].legend()
        save(figure, path)


def tidal(path: Path) -> None:
    """lambda(p, t), the teacher's share of TIDAL's target, over training progress at several t."""
    progress = np.linspace(0, 1, 101)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        ts = (0.0, 0.25, 0.5, 0.75, 0.95)
        for t, colour in zip(ts, matplotlib.colormaps["plasma"](np.linspace(0.1, 0.85, len(ts))), strict=True):
            axes.plot(
                progress, [float(tidal_lambda(p, torch.tensor(t))) for p in progress], color=colour, label=f"t = {t:g}"
            )
        axes.set(xlabel="training progress p", ylabel="lambda", ylim=(0, 1))
        axes.legend()
        save(figure, path)


def scores(start: Line, compared: Sequence[Line], path: Path) -> None:
    """Every seed's score, and the mean with its 95% interval, of the start and of each variant."""
    with matplotlib.rc_context(STYLE):
        rows = [start, *compared]
        figure = Figure(figsize=(8, 0.7 + 0.28 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for row, line in enumerate(rows):
            values = list(line.scores.values())
            axes.plot(values, [row] * len(values), ".", color=VIOLET, alpha=0.4, markersize=5)
            axes.errorbar(
                line.mean, row, xerr=[[line.mean - line.low], [line.high - line.mean]], fmt="o", color=GREEN, capsize=3
            )
        axes.axvline(compared[0].mean, color=ORANGE, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [line.variant for line in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.02, 1.02), xlabel="exact match on held-out problems")
        save(figure, path)


def starts(start: Line, compared: Sequence[Line], path: Path) -> None:
    """Each seed's score after training over the score of the student that it started from; the first seven variants."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, 7))
        for line, colour in zip(compared, colours, strict=False):
            seeds = sorted(line.scores, key=start.scores.__getitem__)
            axes.plot(
                [start.scores[s] for s in seeds],
                [line.scores[s] for s in seeds],
                ".-",
                color=colour,
                label=line.variant,
            )
        axes.set(xlabel="score of the start", ylabel="score after training", xlim=(0, 1.02), ylim=(0, 1.02))
        figure.legend(loc="outside right center", fontsize=8)
        save(figure, path)


def teacher_kl(start: Line, compared: Sequence[Line], path: Path) -> None:
    """KL(teacher || student) on held-out rows by t: of the student that all start from, and of each variant after it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(start.kl)), start.kl, strict=True):
            t = list(TIMESTEPS)
            axes.plot(t, start.kl[name], "k--", label="before")
            colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(compared)))
            for line, colour in zip(compared, colours, strict=True):
                axes.plot(t, line.kl[name], ".-", color=colour, label=line.variant, linewidth=1.1)
            axes.set(xlabel="t", title=f"teacher {name}", yscale="log")
        figure.axes[0].set_ylabel("KL(teacher || student), nats")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """The same bytes for the same numbers: no date, fixed ids."""
    figure.savefig(path, facecolor="white", metadata={"Date": None})

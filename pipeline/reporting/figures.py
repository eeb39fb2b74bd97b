"""Figures of the report as inline SVG. Each takes numbers and returns markup; ink follows the page's text colour."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.evaluation.results import Sample
from pipeline.evaluation.sweep import SweepPoint
from pipeline.method.calm import calm
from pipeline.method.tidal import tidal_lambda
from pipeline.reporting.chunk_view import VISIBLE
from pipeline.reporting.run_record import Objective, Run
from pipeline.reporting.summary import GREEN, ORANGE, VIOLET, Model
from pipeline.training.teacher_probe import TeacherProbe

SMALLEST = 0.6  # of a figure's own width: below it, text cannot be read on a phone
INK = "#010203"  # stands for the page's text colour, which differs between light and dark
PLAIN = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
STYLE = PLAIN | {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "grid.color": "#808080",
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
}
VIEWS = {"one_view": ("one view", "o-", ORANGE), "two_views": ("two views (CompDemo)", "s-", VIOLET)}


def by_t(ts: Sequence[object]) -> list[tuple[float, ...]]:
    """A colour for each t, from violet to orange: all of them readable on light and on dark."""
    return [tuple(c) for c in matplotlib.colormaps["plasma"](np.linspace(0.4, 0.85, max(len(ts), 1)))]


def scores(models: Sequence[Model], task: str) -> Markup:
    """Value and interval of each model, on one axis."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.5 + 0.5 * len(models)), layout="constrained")
        axes = figure.subplots()
        for row, model in enumerate(models):
            score = model.scores[task]
            if score.low is not None:
                axes.plot(
                    [score.low, score.high],
                    [row, row],
                    color=model.colour,
                    linewidth=6,
                    alpha=0.35,
                    solid_capstyle="butt",
                )
            axes.plot([score.value], [row], "o", color=model.colour, markersize=8)
            axes.annotate(f"{score.value:.3f}", (score.value, row), (0, 7), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(models)), [model.label for model in models])
        axes.set(ylim=(len(models) - 0.5, -0.7), xlabel=models[0].scores[task].metric)
        if all(0 <= model.scores[task].value <= 1 for model in models):  # a share
            axes.set_xlim(-0.02, 1.02)
        return svg(figure, "scores")


def sweeps(swept: Sequence[tuple[Model, Sequence[SweepPoint]]]) -> Markup:
    """Score over tokens per forward, a line a model, with the intervals of both."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for model, points in swept:
            across, up = [p.tokens_per_forward for p in points], [float(p.score.value or 0) for p in points]
            sides = [
                [x - p.low for x, p in zip(across, points, strict=True)],
                [p.high - x for x, p in zip(across, points, strict=True)],
            ]
            bars = {"xerr": sides}
            if all(p.score.low is not None for p in points):
                lows, highs = [float(p.score.low or 0) for p in points], [float(p.score.high or 0) for p in points]
                bars["yerr"] = [list(np.subtract(up, lows)), list(np.subtract(highs, up))]
            axes.errorbar(
                across, up, **bars, fmt="o-", color=model.colour, label=model.label, elinewidth=0.8, alpha=0.85
            )
        axes.set(xlabel="tokens per forward", ylabel=swept[0][1][0].score.metric)
        axes.legend()
        return svg(figure, "sweeps")


def losses(runs: Sequence[tuple[Model, Run]]) -> Markup:
    """Training loss and each of its terms over steps, one panel per term."""
    terms = ["loss", "cross_entropy", *dict.fromkeys(name for _, run in runs for name in run.teachers)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(terms), 2.8), layout="constrained")
        for axes, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
            for model, run in runs:
                steps, values = series(run.training, term)
                axes.plot(steps, values, color=model.colour, alpha=0.3, linewidth=0.8)
                axes.plot(steps, smooth(values), color=model.colour, label=model.label)
            axes.set(
                xlabel="step",
                title=term.replace("_", "-") if term in ("loss", "cross_entropy") else f"distillation: {term}",
            )
        figure.axes[0].legend()
        return svg(figure, "losses")


def validation(runs: Sequence[tuple[Model, Run]]) -> Markup:
    """Validation cross-entropy over steps, one line per value of t, one panel per run."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(runs) + 0.6, 3), layout="constrained")
        panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
        for axes, (model, run) in zip(panels, runs, strict=True):
            ts = list(run.validation[0].by_t)
            steps = [line.step for line in run.validation]
            for t, colour in zip(ts, by_t(ts), strict=True):
                values = [line.by_t[t] for line in run.validation]
                axes.plot(steps, values, ".-", color=colour, label=f"t = {float(t):g}")
            axes.set(xlabel="step", title=model.label, yscale="log")
        figure.axes[0].set_ylabel("validation loss")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
        return svg(figure, "validation")


def probe(teachers: Mapping[str, TeacherProbe]) -> Markup:
    """Log-probability of the truth and accuracy over t, with one view and with two; a row per teacher."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8 * len(teachers)), layout="constrained")
        rows = figure.subplots(len(teachers), 2, squeeze=False)
        for (left, right), (name, known) in zip(rows, teachers.items(), strict=True):
            for view, (label, marker, colour) in VIEWS.items():
                left.plot(known.t, known.log_prob[view], marker, color=colour, label=label)
                right.plot(known.t, known.accuracy[view], marker, color=colour, label=label)
            left.axhline(known.uniform, color=INK, linestyle=":", linewidth=1, label="uniform guess")
            left.set(xlabel="t", title=f"{name}: mean log-probability of the true token")
            right.set(xlabel="t", title=f"{name}: true token ranked first", ylim=(-0.03, 1.03))
            left.legend()
        return svg(figure, "probe")


def tidal(objective: Objective) -> Markup:
    """lambda over training progress p and diffusion time t."""
    t = torch.linspace(0, 1, 41)
    progress = np.linspace(0, 1, 41)
    o = objective
    values = [
        tidal_lambda(p, t, init=o.init, maximum=o.maximum, axes=o.axes, schedule=o.schedule).numpy() for p in progress
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        panel = figure.subplots()
        filled = panel.contourf(
            progress, t.numpy(), np.stack(values, axis=1), levels=np.linspace(0, 1, 11), cmap="viridis"
        )
        figure.colorbar(filled, label="lambda")
        panel.set(xlabel="training progress p", ylabel="diffusion time t")
        return svg(figure, "tidal")


def gradients(temperature: float) -> Markup:
    """`plot_gradients` for the page."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3), layout="constrained")
        plot_gradients(figure, temperature)
        return svg(figure, "gradients")


def plot_gradients(figure: Figure, temperature: float) -> None:
    """dL/da of CALM and Reverse CALM over the student's chunk probability, a = log of it, for a sure and an unsure teacher."""
    p = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    for axes, teacher in zip(figure.subplots(1, 2), (0.99, 0.01), strict=True):
        for direction, label, colour in (("forward", "CALM", ORANGE), ("reverse", "Reverse CALM", VIOLET)):
            a = p.log().requires_grad_()
            loss = calm(a, torch.full_like(p, teacher).log(), temperature=temperature, direction=direction)
            axes.plot(p, torch.autograd.grad(loss.sum(), a)[0], color=colour, label=label)
        axes.axhline(0, color="#808080", linewidth=0.7)
        axes.set(xlabel="student's chunk probability", title=f"teacher's chunk probability {teacher}", ylim=(-2.5, 2.5))
    figure.axes[0].set_ylabel(f"dL / d log-probability (T = {temperature:g})")
    figure.axes[0].legend()


def teacher_kl(teachers: Sequence[str], by_step: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Markup:
    """KL from each teacher to the student over t, a line for each step at which it was measured, a panel per teacher."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(teachers), 2.8), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(teachers), squeeze=False)[0], teachers, strict=True):
            for (step, kl), colour in zip(by_step.items(), (ORANGE, GREEN), strict=False):
                axes.plot(
                    [float(t) for t in kl[name]], list(kl[name].values()), "o-", color=colour, label=f"step {step}"
                )
            axes.set(xlabel="t", title=name, yscale="log")
            axes.legend()
        figure.axes[0].set_ylabel("KL(teacher || student), nats")
        return svg(figure, "teacher_kl")


def throughput(runs: Sequence[tuple[Model, Run]]) -> Markup:
    """Tokens per second over steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.4), layout="constrained")
        axes = figure.subplots()
        for model, run in runs:
            axes.plot(*series(run.training, "tokens_per_second"), color=model.colour, label=model.label)
        axes.set(xlabel="step", ylabel="tokens / s", ylim=(0, 1.15 * axes.get_ylim()[1]))
        axes.legend()
        return svg(figure, "throughput")


def filling(samples: Sequence[Sample]) -> Markup:
    """Which forward decided each token of a response: position across, forward upwards, one panel per response."""
    responses = [(sample.id, sample.filling) for sample in samples if sample.filling]
    with matplotlib.rc_context(STYLE):
        width = 1.2 + 0.42 * max(len(f.filled) for _, f in responses)
        figure = Figure(figsize=(width, 2.4 * len(responses)), layout="constrained")
        for axes, (problem, f) in zip(figure.subplots(len(responses), 1, squeeze=False)[:, 0], responses, strict=True):
            axes.scatter(range(len(f.filled)), f.filled, c=f.filled, cmap="plasma", vmin=-2, s=14)
            for position, (piece, forward) in enumerate(zip(f.pieces, f.filled, strict=True)):
                label = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "parse_math": False}
                axes.annotate(piece.translate(VISIBLE), (position, forward), (0, 5), **label)
            axes.set(ylabel="forward", title=f"problem {problem}", ylim=(0, max(f.filled) + 2))
            axes.locator_params(integer=True)
        figure.axes[-1].set_xlabel("position in the response")
        return svg(figure, "filling")


def series(lines: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that hold a value."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred running mean over about a twentieth of the run, shorter windows at the ends."""
    half = len(values) // 40
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def svg(figure: Figure, name: str) -> Markup:
    """Inline SVG that scales with the page, down to `SMALLEST` (it then scrolls): no metadata, no namespace addresses, ids of
    its own."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    markup = text.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    markup = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", markup)
    markup = markup.replace("<svg", f'<svg style="min-width: {SMALLEST * figure.get_figwidth():.2f}in"', 1)
    return Markup(markup.replace(INK, "currentColor"))

"""Pictures of the report. Each function takes numbers and returns markup: one picture, or several to stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from pipeline.config.recipe import Tidal
from pipeline.evaluation.results import TaskSample
from pipeline.evaluation.sweep import SweepPoint
from pipeline.method.calm import calm
from pipeline.method.tidal import tidal_lambda
from pipeline.reporting.chunk_view import VISIBLE
from pipeline.reporting.picture import SIZE, Spot, picture, spots
from pipeline.reporting.run_record import RunRecord
from pipeline.reporting.summary import GREEN, ORANGE, VIOLET, Model
from pipeline.training.teacher_probe import TeacherProbe

VIEWS = {"one_view": ("one view", "o-", ORANGE), "two_views": ("two views (CompDemo)", "s-", VIOLET)}
DIRECTIONS: dict[Literal["forward", "reverse"], tuple[str, str]] = {
    "forward": ("CALM", ORANGE),
    "reverse": ("Reverse CALM", VIOLET),
}
SURE, UNSURE = 0.99, 0.01
"""A teacher's chunk probabilities whose gradients are plotted."""


def by_t(ts: Sequence[object]) -> list[str]:
    """A colour for each t, from violet to orange: all of them readable on light and on dark."""
    return [to_hex(c) for c in matplotlib.colormaps["plasma"](np.linspace(0.4, 0.85, max(len(ts), 1)))]


def scores(models: Sequence[Model], task: str) -> Markup:
    """Value and interval of each model, on one axis."""
    measured = [(model, score := model.scores[task], float(score.value or 0)) for model in models]

    def plot(axes: Axes) -> Iterator[Spot]:
        for row, (model, score, value) in enumerate(measured):
            if score.low is not None and score.high is not None:
                axes.hlines(row, score.low, score.high, model.colour, linewidth=6, alpha=0.35)
            axes.plot([value], [row], "o", color=model.colour, markersize=8)
            axes.annotate(f"{value:.3f}", (value, row), (0, 7), textcoords="offset points", ha="center")
            yield Spot(value, row, f"{model.label}: {value:.3f}, 95% interval {score.bounds or 'unknown'}")
        axes.set_yticks(range(len(models)), [model.label for model in models])
        axes.set(ylim=(len(models) - 0.5, -0.7), xlabel=measured[0][1].metric)
        if all(0 <= value <= 1 for _, _, value in measured):  # a share
            axes.set_xlim(-0.02, 1.02)

    values = ", ".join(f"{model.label} {value:.3f}" for model, _, value in measured)
    return picture(f"{task}, {measured[0][1].metric}: {values}", plot, (SIZE[0], 0.5 + 0.5 * len(models)))


def sweeps(swept: Sequence[tuple[Model, Sequence[SweepPoint]]]) -> list[Markup]:
    """Score over tokens per forward with the intervals of both, and over tokens per second; a line per model."""
    metric = swept[0][1][0].score.metric or ""

    def per_forward(axes: Axes) -> Iterator[Spot]:
        for model, points in swept:
            across, up = [p.tokens_per_forward for p in points], [float(p.score.value or 0) for p in points]
            bars: dict[str, Any] = {
                "xerr": [np.subtract(across, [p.low for p in points]), np.subtract([p.high for p in points], across)]
            }
            if all(p.score.low is not None for p in points):
                lows, highs = [float(p.score.low or 0) for p in points], [float(p.score.high or 0) for p in points]
                bars["yerr"] = [np.subtract(up, lows), np.subtract(highs, up)]
            axes.errorbar(across, up, **bars, fmt="o-", color=model.colour, elinewidth=0.8, alpha=0.85)
            for x, y, point in zip(across, up, points, strict=True):
                yield Spot(x, y, f"{model.label}, {point.setting}: {y:.3f} at {x:.2f} tokens per forward")
        axes.set(xlabel="tokens per forward", ylabel=metric)

    def per_second(axes: Axes) -> Iterator[Spot]:
        for model, points in swept:
            for point in points:
                if point.score.generation:
                    x, y = point.score.generation.tokens_per_second, float(point.score.value or 0)
                    axes.plot([x], [y], "o", color=model.colour, alpha=0.85)
                    yield Spot(x, y, f"{model.label}, {point.setting}: {y:.3f} at {x:,.0f} tokens/s")
        axes.set(xlabel="tokens / s of one device", ylabel=metric, xlim=(0, None))

    ends = "; ".join(f"{m.label} {p[0].score.value:.3f} to {p[-1].score.value:.3f}" for m, p in swept)
    return [
        picture(f"{metric} over tokens per forward: {ends}", per_forward),
        picture(f"{metric} over tokens per second: {ends}", per_second),
    ]


def over_steps(runs: Sequence[tuple[Model, RunRecord]], name: str, title: str, *, smoothed: bool = False) -> Markup:
    """One entry of the training lines over steps, a line per run; `smoothed` adds the running mean."""
    curves = [(model, *series(run.training, name)) for model, run in runs]

    def plot(axes: Axes) -> Iterator[Spot]:
        for model, steps, values in curves:
            if smoothed:
                axes.plot(steps, values, color=model.colour, alpha=0.3, linewidth=0.8)
            axes.plot(steps, smooth(values) if smoothed else values, color=model.colour)
            yield from spots(steps, values, "{label}, step {x:,}: {y:.4g}", label=model.label)
        axes.set(xlabel="step", title=title)

    ends = ", ".join(f"{model.label} from {values[0]:.4g} to {values[-1]:.4g}" for model, _, values in curves if values)
    return picture(f"{title} over steps: {ends}", plot)


def validation(model: Model, run: RunRecord, bounds: tuple[float, float]) -> Markup:
    """Validation cross-entropy over steps, one line per value of t; `bounds` of the axis are shared between runs."""
    steps, ts = [line.step for line in run.validation], list(run.validation[0].by_t)

    def plot(axes: Axes) -> Iterator[Spot]:
        for t, colour in zip(ts, by_t(ts), strict=True):
            values = [line.by_t[t] for line in run.validation]
            axes.plot(steps, values, ".-", color=colour)
            yield from spots(steps, values, "t = {t}, step {x:,}: {y:.4g}", t=t)
        axes.set(xlabel="step", title=model.label, yscale="log", ylim=(bounds[0] / 1.2, bounds[1] * 1.2))
        axes.set_xlim(0, 1.05 * steps[-1])

    last = ", ".join(f"{value:.3g} at t = {t}" for t, value in run.validation[-1].by_t.items())
    return picture(f"validation loss of {model.label} over steps, by t: at last {last}", plot)


def probe(name: str, known: TeacherProbe) -> list[Markup]:
    """A teacher's log-probability of the truth and its accuracy over t, with one view and with two."""

    def plot(axes: Axes, values: Mapping[str, Sequence[float]]) -> Iterator[Spot]:
        for view, (label, marker, colour) in VIEWS.items():
            axes.plot(known.t, values[view], marker, color=colour)
            yield from spots(known.t, values[view], "{label}, t = {x}: {y:.3f}", label=label)

    def log_prob(axes: Axes) -> Iterable[Spot]:
        axes.axhline(known.uniform, color="#808080", linestyle=":", linewidth=1.2)
        axes.set(xlabel="t", title=f"{name}: mean log-probability of the true token")
        return plot(axes, known.log_prob)

    def accuracy(axes: Axes) -> Iterable[Spot]:
        axes.set(xlabel="t", title=f"{name}: true token ranked first", ylim=(-0.03, 1.03))
        return plot(axes, known.accuracy)

    def ends(values: Mapping[str, Sequence[float]]) -> str:
        return "; ".join(f"{VIEWS[v][0]} {values[v][0]:.3f} to {values[v][-1]:.3f}" for v in VIEWS)

    return [
        picture(f"{name}, mean log-probability of the true token over t: {ends(known.log_prob)}", log_prob),
        picture(f"{name}, share of true tokens ranked first over t: {ends(known.accuracy)}", accuracy),
    ]


def tidal(o: Tidal) -> Markup:
    """lambda over training progress p and diffusion time t."""
    t, progress = torch.linspace(0, 1, 41), np.linspace(0, 1, 41)
    values = np.stack(
        [tidal_lambda(p, t, init=o.init, maximum=o.maximum, axes=o.axes, schedule=o.schedule).numpy() for p in progress]
    )

    def plot(axes: Axes) -> Iterator[Spot]:
        filled = axes.contourf(progress, t.numpy(), values.T, levels=np.linspace(0, 1, 11), cmap="viridis")
        axes.figure.colorbar(filled, label="lambda")
        axes.set(xlabel="training progress p", ylabel="diffusion time t")
        for i in range(2, 41, 4):
            for j in range(2, 41, 4):
                says = f"p = {progress[i]:.2f}, t = {t[j]:.2f}: lambda {values[i, j]:.3f}"
                yield Spot(progress[i], float(t[j]), says)

    return picture(
        f"lambda over progress and t: {values[0, 0]:.2f} at the start, {values[-1, 0]:.2f} at the end, t = 0", plot
    )


def gradients(temperature: float) -> list[Markup]:
    """`plot_gradient` for a teacher that is sure of a chunk, and for one that is sure that it is wrong."""
    slope = f"dL / d log-probability (T = {temperature:g})"

    def gradient(teacher: float) -> Markup:
        def plot(axes: Axes) -> tuple[()]:
            plot_gradient(axes, temperature, teacher)
            axes.set_ylabel(slope)
            return ()

        return picture(f"{slope} over the student's chunk probability, teacher's {teacher}", plot)

    return [gradient(SURE), gradient(UNSURE)]


def plot_gradient(axes: Axes, temperature: float, teacher: float) -> None:
    """dL/da of CALM and Reverse CALM over the student's chunk probability, a = log of it."""
    p = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    for direction, (label, colour) in DIRECTIONS.items():
        a = p.log().requires_grad_()
        loss = calm(a, torch.full_like(p, teacher).log(), temperature=temperature, direction=direction)
        axes.plot(p, torch.autograd.grad(loss.sum(), a)[0], color=colour, label=label)
    axes.axhline(0, color="#808080", linewidth=0.7)
    axes.set(xlabel="student's chunk probability", title=f"teacher's chunk probability {teacher}", ylim=(-2.5, 2.5))


def teacher_kl(name: str, by_step: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Markup:
    """KL from a teacher to the student over t, a line for each step at which it was measured."""
    lines = {step: [(float(t), nats) for t, nats in kl[name].items()] for step, kl in by_step.items()}

    def plot(axes: Axes) -> Iterator[Spot]:
        for (step, points), colour in zip(lines.items(), (ORANGE, GREEN), strict=False):
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"step {step}")
            yield from (Spot(t, nats, f"step {step}, t = {t}: {nats:.3g} nats") for t, nats in points)
        axes.set(xlabel="t", title=name, yscale="log", ylabel="KL, nats")
        axes.legend()

    means = ", ".join(f"{np.mean([nats for _, nats in points]):.3g} at step {step}" for step, points in lines.items())
    return picture(f"KL from {name} to the student over t, in nats; mean {means}", plot)


def filling(sample: TaskSample) -> Markup:
    """Which forward decided each token of a response: position across, forward upwards."""
    f = sample.filling
    assert f is not None

    def plot(axes: Axes) -> tuple[()]:
        axes.scatter(range(len(f.filled)), f.filled, c=f.filled, cmap="plasma", vmin=-2, s=14)
        for position, (piece, forward) in enumerate(zip(f.pieces, f.filled, strict=True)):
            label: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "parse_math": False}
            axes.annotate(piece.translate(VISIBLE), (position, forward), (0, 5), **label)
        axes.set(ylabel="forward", title=f"problem {sample.id}", ylim=(0, max(f.filled) + 2))
        axes.set_xlabel("position in the response")
        axes.locator_params(integer=True)
        return ()

    width = max(SIZE[0], 0.6 + 0.36 * len(f.filled))
    return picture(f"problem {sample.id}: which of {max(f.filled)} forwards decided each token", plot, (width, 2.6))


def series(lines: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that hold a value."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def smooth(values: Sequence[float]) -> np.ndarray:
    """Centred running mean over about a twentieth of the run, shorter windows at the ends."""
    half, indices = len(values) // 40, np.arange(len(values))
    first, end = np.maximum(indices - half, 0), np.minimum(indices + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[first]) / (end - first)

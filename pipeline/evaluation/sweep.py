"""Tokens per forward against score: one model under several thresholds of decoding (`evaluate --sweep`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import BadInput
from pipeline.evaluation.results import Score, read_samples, read_score
from pipeline.evaluation.statistics import ratio_interval

FOLDER = "sweep"
"""In a model's folder of scores; below it, a folder per threshold."""


def parse_thresholds(text: str) -> list[float]:
    """Of `threshold=0.7,0.9`, ascending. Raises BadInput for anything else."""
    name, _, values = text.partition("=")
    try:
        thresholds = sorted({float(value) for value in values.split(",")})
    except ValueError:
        thresholds = []
    if name != "threshold" or not thresholds or thresholds[0] <= 0:
        raise BadInput(f"--sweep {text}: write it as threshold=0.7,0.8,0.9,0.95 (probabilities above 0)")
    return thresholds


@dataclass(frozen=True)
class SweepPoint:
    """A task's score and cost under one setting."""

    setting: str
    """`threshold 0.9`, or the name of the preset."""
    score: Score
    tokens_per_forward: float
    low: float
    high: float
    """Of a 95% interval over problems."""

    @classmethod
    def read(cls, folder: Path, task: str, setting: str = "") -> SweepPoint | None:
        """None where the task has no score there, or generates no text. Without a setting, the preset's name."""
        score = read_score(folder, task)
        if score is None or score.value is None:
            return None
        fillings = [sample.filling for sample in read_samples(folder, score) if sample.filling]
        tokens, forwards = [f.tokens for f in fillings], [f.forwards for f in fillings]
        if not sum(tokens):
            return None
        name = setting or f"preset {score.provenance.preset if score.provenance else ''}"
        return cls(name, score, sum(tokens) / sum(forwards), *ratio_interval(tokens, forwards))

    @property
    def bounds(self) -> str:
        """The interval of the tokens per forward as text."""
        return f"{self.low:.2f} to {self.high:.2f}"


def swept_tasks(folder: Path) -> list[str]:
    """Tasks that a model has points of."""
    return sorted({path.stem for path in (folder / FOLDER).glob("threshold-*/*.json")})


def read_sweep(folder: Path, task: str) -> list[SweepPoint]:
    """A model's points for a task: its preset's, then from the highest threshold down; [] where nothing was swept."""
    swept = {float(path.name.removeprefix("threshold-")): path for path in (folder / FOLDER).glob("threshold-*")}
    points = [
        SweepPoint.read(path, task, f"threshold {threshold:g}")
        for threshold, path in sorted(swept.items(), reverse=True)
    ]
    scored = [point for point in points if point]
    preset = SweepPoint.read(folder, task) if scored else None
    return [preset, *scored] if preset else scored

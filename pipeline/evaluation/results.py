"""What an evaluation leaves behind per task: TASK.json, a `Score`, and TASK.samples.jsonl, a `TaskSample` per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pipeline.core.files import read_json, read_json_lines

SAMPLES = ".samples.jsonl"


class Part:
    """A dataclass whose fields are entries of a JSON object."""

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """From an object that may hold other entries, too. Raises TypeError where a field without a default is missing."""
        return cls(**{f.name: entries[f.name] for f in fields(cls) if f.name in entries})  # type: ignore[arg-type]

    @classmethod
    def if_there(cls, entries: Mapping[str, Any]) -> Self | None:
        """None where the object has none of the fields."""
        return cls.from_json(entries) if any(f.name in entries for f in fields(cls)) else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Mean(Part):
    """A metric over `n` problems, with its 95% interval; without one where it is no mean over problems."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Cost(Part):
    """Of one device. Prompt tokens, end tokens and what follows them never count; latency is until a batch was done, in seconds."""

    tokens_per_second: float
    forwards_per_token: float | None
    latency_median: float
    latency_p95: float


@dataclass(frozen=True)
class CostOf(Cost):
    """Of `n` responses."""

    n: int


@dataclass(frozen=True)
class Generation(Cost):
    """Length, speed and cost of a task's responses."""

    truncated: float
    """Share that reached the length limit without an end token."""
    masks_left: int
    tokens: int
    by_length: Mapping[str, CostOf]


@dataclass(frozen=True)
class Likelihood(Part):
    """Noise of the estimator: standard errors in nats, and the share of problems whose two best choices are within two of them."""

    mean_stderr: float
    largest_stderr: float
    unsure: float


@dataclass(frozen=True)
class Programs(Part):
    """How generated programs ended, and within which limits."""

    reasons: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance(Part):
    """What a score was made with."""

    model: str = ""
    checksum: str = ""
    label: str = ""
    preset: str = ""
    preset_hash: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Score(Part):
    """One model on one task. The headline is the task's first metric; its value is None before programs are run."""

    task: str
    metric: str | None = None
    value: float | None = None
    n: int = 0
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    metrics: Mapping[str, Mean] = field(default_factory=dict)
    """"METRIC,FILTER" -> its value."""
    seconds: float | None = None
    """Of computation, over all devices."""
    generation: Generation | None = None
    likelihood: Likelihood | None = None
    fewshot: int = 0
    prompts_hash: str = ""
    devices: Sequence[str] = ()
    alarms: Sequence[str] = ()
    raw_outputs: Sequence[Mapping[str, str]] = ()
    """Prompt and response of a few problems, where there are alarms."""
    programs: Programs | None = None
    provenance: Provenance | None = None

    def to_json(self) -> dict[str, Any]:
        """Generation, programs and provenance are flat there; what does not apply has no entry."""
        entries = asdict(self)
        for part in ("generation", "programs", "provenance"):
            entries |= entries.pop(part) or {}
        optional = ("seconds", "likelihood", "raw_outputs")
        return {name: value for name, value in entries.items() if value or name not in optional}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """From TASK.json. Raises TypeError for an object that is none."""
        parts: dict[str, Any] = {
            "metrics": {name: Mean.from_json(value) for name, value in entries.get("metrics", {}).items()},
            "generation": None,
            "likelihood": Likelihood.if_there(entries.get("likelihood", {})),
            "programs": Programs.if_there(entries),
            "provenance": Provenance.if_there(entries),
        }
        if "by_length" in entries:
            lengths = {name: CostOf.from_json(value) for name, value in entries["by_length"].items()}
            parts["generation"] = Generation.from_json({**entries, "by_length": lengths})
        return super().from_json({**entries, **parts})

    @property
    def bounds(self) -> str:
        """The 95% interval as text; empty where the metric has none."""
        return "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True)
class Filling(Part):
    """How a response came about."""

    tokens: int = 0
    """Before the end token."""
    forwards: int = 0
    ended: bool = True
    """By a token or a stop string, not by the length limit."""
    pieces: Sequence[str] = ()
    """Each token as text."""
    filled: Sequence[int] = ()
    """The forward that decided each token, counted from 1."""


@dataclass(frozen=True)
class Choice(Part):
    """A continuation that the task offers."""

    text: str
    log_likelihood: float
    stderr: float


@dataclass(frozen=True)
class TaskSample(Part):
    """A problem, what the model answered, and what that is worth."""

    prompt: str
    response: str
    """Of a task over log-likelihoods, the likeliest continuation."""
    target: Any = None
    """As the task has it: text, a number, or a test program's parts."""
    correct: bool | None = None
    """None for a graded metric, and before programs are run."""
    id: int | None = None
    answer: Any = None
    """What the task's filter found in the response."""
    metric: str | None = None
    value: Any = None
    """Of the headline metric: a number, where it is a mean over problems."""
    filling: Filling | None = None
    choices: Sequence[Choice] = ()
    unsure: bool = False
    """Whether the two best choices are within the estimator's noise."""
    reason: str = ""
    detail: str = ""
    """Why a program failed."""

    def to_json(self) -> dict[str, Any]:
        """A line of TASK.samples.jsonl: the metric's name names its value; what does not apply has no entry."""
        entries = {**asdict(self), "choices": [asdict(choice) for choice in self.choices]}
        entries |= entries.pop("filling") or {}
        metric, value = entries.pop("metric"), entries.pop("value")
        if metric is not None and value is not None:
            entries[metric] = value
        if not self.choices:
            del entries["choices"], entries["unsure"]
        if not self.reason:
            del entries["reason"], entries["detail"]
        return entries

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], metric: str | None = None) -> Self:
        """From a line of TASK.samples.jsonl and the name of the task's headline metric."""
        parts = {
            "metric": metric,
            "value": entries.get(metric) if metric else None,
            "filling": Filling.if_there(entries),
            "choices": [Choice.from_json(choice) for choice in entries.get("choices", [])],
        }
        return super().from_json({**entries, **parts})


def read_score(folder: Path, task: str) -> Score | None:
    """None without a file. Raises BadInput for a file that is not JSON."""
    entries = read_json(folder / f"{task}.json")
    return None if entries is None else Score.from_json(entries)


def read_scores(folder: Path) -> dict[str, Score]:
    """{task: its score} of one folder of an evaluation. Raises as `read_score`."""
    scores = {path.stem: read_score(folder, path.stem) for path in sorted(folder.glob("*.json"))}
    return {task: score for task, score in scores.items() if score}


def read_samples(folder: Path, score: Score) -> list[TaskSample]:
    """A task's samples, in order; [] without a file."""
    return [TaskSample.from_json(row, score.metric) for row in read_json_lines(folder / f"{score.task}{SAMPLES}")]

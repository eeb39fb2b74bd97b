"""What the probe of the teachers found, as files hold it. Imports no torch: readers of runs need none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class TeacherProbe:
    """What a teacher knows of masked held-out tokens; lists have a value for each t."""

    t: Sequence[float]
    uniform: float
    """Log-probability by guessing: a teacher below it reads through a wrong tokenizer, template or mask."""
    log_prob: dict[str, list[float]]
    """Mean log-probability of the truth, by view (`one_view`, `two_views`)."""
    accuracy: dict[str, list[float]]
    """Share of tokens where the truth is the likeliest, by view."""

    @property
    def reliability(self) -> float:
        """Share of masked tokens whose truth is the likeliest with one view, mean over t."""
        return mean(self.accuracy["one_view"])

    @property
    def room(self) -> float:
        """What a second view, CompDemo's, adds to it."""
        return mean(self.accuracy["two_views"]) - self.reliability

    def to_json(self) -> dict[str, float | list[float]]:
        """A teacher's entry in teacher_probe.json, which has `t` once for all of them."""
        accuracy = {f"accuracy_{view}": values for view, values in self.accuracy.items()}
        return {"uniform": self.uniform, **self.log_prob, **accuracy}

    @classmethod
    def from_json(cls, t: Sequence[float], entries: Mapping[str, Any]) -> TeacherProbe:
        """From such an entry."""
        views = [name.removeprefix("accuracy_") for name in entries if name.startswith("accuracy_")]
        log_prob, accuracy = {v: entries[v] for v in views}, {v: entries[f"accuracy_{v}"] for v in views}
        return cls(t, entries["uniform"], log_prob, accuracy)


def read_probes(entries: Mapping[str, Any]) -> dict[str, TeacherProbe]:
    """{teacher: its probe} of the contents of teacher_probe.json."""
    return {name: TeacherProbe.from_json(entries["t"], known) for name, known in entries["teachers"].items()}

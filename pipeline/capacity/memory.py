"""Bytes of one GPU: by part, by phase, and how much fits."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.capacity.fake_step import Held, hold
from pipeline.capacity.inputs import Facts
from pipeline.capacity.rows import sample
from pipeline.capacity.zero3 import Shards
from pipeline.data.batch import Batch

TRACED = (1, 4)  # rows at once that are counted; what lies between and beyond is linear in them


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU."""

    always: dict[str, int]
    """What is there all the time, by part"""
    phases: dict[str, int]
    """What each phase adds"""

    @property
    def total(self) -> int:
        return sum(self.always.values()) + max(self.phases.values())


def count_held(facts: Facts) -> dict[bool, tuple[Held, Held]]:
    """What micro-steps of `TRACED` longest rows hold, without and with activation checkpointing, on any GPUs."""
    student, *teachers = facts.configs
    plain, checkpointed = zip(
        *(hold(facts.plan, student, teachers, _full(facts, rows)) for rows in TRACED), strict=True
    )
    return {False: plain, True: checkpointed}


def _full(facts: Facts, rows: int) -> Batch:
    """The most that this many rows can take: the longest ones, all maskable and all masked."""
    return facts.builder([sample(facts.data.longest, 1.0)] * rows, 1.0)


def interpolate(held: tuple[Held, Held], rows: float) -> Held:
    """What a micro-step of this many longest rows holds."""

    def at(low: float, high: float) -> int:
        return round(low + (high - low) * (rows - TRACED[0]) / (TRACED[1] - TRACED[0]))

    low, high = held
    return Held(
        at(low.batch, high.batch),
        tuple(at(a, b) for a, b in zip(low.teachers, high.teachers, strict=True)),
        tuple(at(a, b) for a, b in zip(low.exchanged, high.exchanged, strict=True)),
        at(low.observed, high.observed),
        at(low.activations, high.activations),
        at(low.student, high.student),
    )


def memory(facts: Facts, shards: Shards, held: tuple[Held, Held], rows: int) -> Memory:
    """With micro-batches of so many longest rows."""
    at, always = interpolate(held, rows), {}
    for name, teacher in facts.teachers.items():
        always[f"teacher {name}: dense part"] = teacher.dense
        if teacher.experts:
            always[f"teacher {name}: experts / {teacher.expert_parallel_size}"] = teacher.experts
    always |= {
        "student: parameters": shards.parameters,
        "student: gradients": shards.gradients,
        "student: gradient bucket": shards.bucket,
        "student: optimizer": shards.optimizer,
        "batch and observations": at.batch + at.observed,
    }
    phases = {
        f"teacher {name}: forward": peak + (sent if teacher.expert_parallel_size > 1 else 0)
        for (name, teacher), peak, sent in zip(facts.teachers.items(), at.teachers, at.exchanged, strict=True)
    }
    phases |= {
        "student: forward and backward": shards.gathered + at.student,
        "student: reduction of gradients": shards.reducing,
        "student: optimizer step": shards.stepping,
    }
    return Memory({part: size for part, size in always.items() if size}, phases)


def largest_rows(facts: Facts, shards: Shards, held: tuple[Held, Held], limit: float) -> int:
    """Longest rows that fit at once; 0 = not even one."""

    def fits(rows: int) -> bool:
        return memory(facts, shards, held, rows).total <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

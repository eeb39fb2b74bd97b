"""Distillation terms: what is asked of a teacher, and what is made of the answer. Bound once from the recipe.

A term works on one `TeacherBatch` (legend there: M, K, N). Its steps, in order:

    observe     run the teacher: one forward, whatever the number of views, without gradient
    row_inputs  what its row function needs beside the student's logits (nothing for CALM)
    row         value of each masked student token, from full logits (KL and TIDAL)
    total       sum of the term over the micro-batch; `count` is its denominator's share
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.config.recipe import Objective, Teacher, Tidal
from pipeline.core.errors import BadInput
from pipeline.data.batch import TeacherBatch
from pipeline.method.calm import calm
from pipeline.method.kl import kl
from pipeline.method.tidal import midrange_weight, tidal_lambda
from pipeline.models.forward import hidden_states, score_tokens

# strategy: (family, direction, TIDAL); "native" is KL with a shared tokenizer and CALM without
_STRATEGIES = {
    "tide_cross": ("native", "reverse", False),
    "tide_shared": ("native", "forward", True),
    "calm": ("calm", "forward", False),
    "reverse_calm": ("calm", "reverse", False),
    "reverse_kl_calm": ("calm", "reverse_kl", False),
    "calm_tidal": ("calm", "forward", True),
    "reverse_calm_tidal": ("calm", "reverse", True),
    "kl": ("kl", "forward", False),
    "reverse_kl": ("kl", "reverse", False),
    "tidal": ("kl", "forward", True),
    "reverse_tidal": ("kl", "reverse", True),
}

Mix = Callable[[float, Tensor], Tensor]  # (progress, t) -> lambda, of t's shape


class Term(Protocol):
    """One teacher's distillation term; see the module's text."""

    name: str

    def count(self, batch: TeacherBatch) -> int: ...
    def observe(self, teacher: nn.Module, batch: TeacherBatch) -> Tensor: ...
    def row_inputs(self, batch: TeacherBatch, observed: Tensor, t: Tensor, progress: float) -> tuple[Tensor, ...]: ...
    def row(self, logits: Tensor, *inputs: Tensor) -> Tensor: ...
    def total(
        self, logp: Tensor, row: Tensor | None, batch: TeacherBatch, observed: Tensor, t: Tensor, progress: float
    ) -> Tensor: ...


@dataclass(frozen=True)
class ChunkTerm:
    """CALM, Reverse CALM, CALM-TIDAL: probabilities of whole chunks, whatever the tokenizers."""

    name: str
    loss: Callable[..., Tensor]
    mix: Mix | None
    weight: Callable[[Tensor], Tensor]
    row = None

    def count(self, batch: TeacherBatch) -> int:
        return batch.chunk_t.shape[0]

    @torch.no_grad()
    def observe(self, teacher: nn.Module, batch: TeacherBatch) -> Tensor:
        """Log-probability of each predicted token's truth: [K]."""
        return score_tokens(teacher, batch.input, batch.predict, batch.targets)

    def row_inputs(self, batch: TeacherBatch, observed: Tensor, t: Tensor, progress: float) -> tuple[Tensor, ...]:
        return ()

    def total(
        self, logp: Tensor, row: Tensor | None, batch: TeacherBatch, observed: Tensor, t: Tensor, progress: float
    ) -> Tensor:
        chunks = batch.chunk_t.shape[0]
        student = logp.new_zeros(chunks + 1).index_add(0, batch.student_chunk, logp)[:chunks]
        teacher = observed.new_zeros(chunks).index_add(0, batch.chunk, observed)
        mix = None if self.mix is None else self.mix(progress, batch.chunk_t)
        return (self.weight(batch.chunk_t) * self.loss(student, teacher, mix=mix)).sum()


@dataclass(frozen=True)
class TokenTerm:
    """KL, reverse KL, TIDAL: full distributions where both sides hold the same single token as a chunk."""

    name: str
    loss: Callable[..., Tensor]
    mix: Mix | None
    weight: Callable[[Tensor], Tensor]
    shared_vocab: int
    head: Tensor
    """The teacher's head, [V_t, H_t]."""

    def count(self, batch: TeacherBatch) -> int:
        return int((batch.pair >= 0).sum())

    @torch.no_grad()
    def observe(self, teacher: nn.Module, batch: TeacherBatch) -> Tensor:
        """Hidden state of each masked student token's partner: [M, H_t], zero without one."""
        hidden = hidden_states(teacher, batch.input, batch.predict)
        return torch.cat([hidden, hidden.new_zeros(1, hidden.shape[1])])[batch.pair]

    def row_inputs(self, batch: TeacherBatch, observed: Tensor, t: Tensor, progress: float) -> tuple[Tensor, ...]:
        return (observed,) if self.mix is None else (observed, self.mix(progress, t))

    def row(self, logits: Tensor, hidden: Tensor, mix: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            teacher = (hidden @ self.head[: self.shared_vocab].T).float()
        return self.loss(logits[:, : self.shared_vocab], teacher, mix=mix)

    def total(
        self, logp: Tensor, row: Tensor | None, batch: TeacherBatch, observed: Tensor, t: Tensor, progress: float
    ) -> Tensor:
        return (row * self.weight(t) * (batch.pair >= 0)).sum()


def family(objective: Objective, teacher: Teacher, shared_vocab: int) -> tuple[Literal["calm", "kl"], str, bool]:
    """The strategy for this teacher: family, direction, TIDAL or not.

    Raises BadInput for an objective over full distributions where the tokenizers share none.
    """
    kind, direction, tidal = _STRATEGIES[objective.strategy]
    if kind == "native":
        kind = "kl" if shared_vocab else "calm"
    if kind == "kl" and not shared_vocab:
        raise BadInput(
            f"objective.strategy {objective.strategy} needs a shared tokenizer, and teacher {teacher.name} has another one: "
            "choose calm, reverse_calm, calm_tidal, tide_cross or tide_shared"
        )
    return kind, direction, tidal


def tidal_mix(tidal: Tidal) -> Mix:
    """lambda(p, t) as the recipe shapes it."""
    return partial(tidal_lambda, init=tidal.init, maximum=tidal.maximum, axes=tidal.axes, schedule=tidal.schedule)


def build_term(objective: Objective, teacher: Teacher, shared_vocab: int, head: Tensor) -> Term:
    """The recipe's objective, bound for one teacher. Raises BadInput as `family` does."""
    kind, direction, tidal = family(objective, teacher, shared_vocab)
    mix = tidal_mix(objective.tidal) if tidal else None
    weight = midrange_weight if tidal and objective.tidal.midrange else torch.ones_like
    loss = partial({"calm": calm, "kl": kl}[kind], temperature=objective.temperature, direction=direction)
    if kind == "calm":
        return ChunkTerm(teacher.name, partial(loss, teacher_floor=objective.teacher_floor), mix, weight)
    return TokenTerm(teacher.name, loss, mix, weight, shared_vocab, head)

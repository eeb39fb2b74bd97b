"""Distillation terms: what is asked of a teacher, and the student's loss towards the answer. Bound once from the recipe.

A term works on one `TeacherBatch` (legend there: M, K, N). It runs the teacher (one forward, whatever the number of views,
without gradient) and turns the output into a `TeacherSignal`, which holds everything that the student's loss needs of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config.recipe import Objective, Teacher, Tidal
from pipeline.core.errors import BadInput
from pipeline.data.batch import TeacherBatch
from pipeline.data.teacher_answers import TeacherAnswers
from pipeline.method.calm import calm
from pipeline.method.kl import kl
from pipeline.method.strategies import Strategy, resolve
from pipeline.method.tidal import midrange_weight, tidal_lambda
from pipeline.models.forward import hidden_states, score_tokens

LEAST_MASS = 1e-30
"""Lower bound of the mass of the tokens that are not stored: its logarithm must be finite."""

Mix = Callable[[float, Tensor], Tensor]
"""(progress, t) -> lambda, of t's shape"""


class TeacherSignal(Protocol):
    """One teacher's answer to one micro-batch."""

    def per_token(self, logits: Tensor, log_prob: Tensor, tokens: slice) -> Tensor:
        """What the loss needs of some masked tokens, while their logits are there: [c].

        Args:
            logits: [c, V], the student's.
            log_prob: [c], of the true tokens.
            tokens: which of the M masked tokens.
        """

    def loss(self, per_token: Tensor) -> Tensor:
        """Sum of the term over the micro-batch, from all tokens' values: [M] -> []."""

    def least(self) -> Tensor:
        """The loss of a student that equals the teacher: []."""


class Term(Protocol):
    """One teacher's distillation term."""

    @property
    def name(self) -> str:
        """The teacher's."""

    @property
    def mix(self) -> Mix | None:
        """TIDAL's lambda; None without it."""

    def count(self, batch: TeacherBatch) -> int:
        """The micro-batch's share of the term's denominator."""

    def teacher_forward(self, teacher: PreTrainedModel | None, batch: TeacherBatch) -> Tensor:
        """What is kept of the teacher's forward; without a teacher, of its stored answers."""

    def signal(self, batch: TeacherBatch, teacher_output: Tensor, progress: float) -> TeacherSignal:
        """The output of `teacher_forward`, ready for the student's loss at this training progress."""


@dataclass(frozen=True)
class ChunkSignal:
    """Probabilities of N whole chunks."""

    log_prob: Tensor
    """[N], each chunk's under the teacher"""
    student_chunk: Tensor
    """int64 [M], chunk of each masked student token; N = in none"""
    objective: Callable[[Tensor, Tensor], Tensor]
    """log-probabilities of chunks under student and teacher -> loss, [N]"""
    weight: Tensor
    """[N]"""

    def per_token(self, logits: Tensor, log_prob: Tensor, tokens: slice) -> Tensor:
        return log_prob

    def loss(self, per_token: Tensor) -> Tensor:
        chunks = len(self.log_prob)
        return self._sum(per_token.new_zeros(chunks + 1).index_add(0, self.student_chunk, per_token)[:chunks])

    def least(self) -> Tensor:
        return self._sum(self.log_prob)

    def _sum(self, student: Tensor) -> Tensor:
        return (self.weight * self.objective(student, self.log_prob)).sum()


@dataclass(frozen=True)
class ChunkTerm:
    """CALM, Reverse CALM, CALM-TIDAL: probabilities of whole chunks, whatever the tokenizers."""

    name: str
    objective: Callable[..., Tensor]
    mix: Mix | None
    weight: Callable[[Tensor], Tensor]

    def count(self, batch: TeacherBatch) -> int:
        return batch.chunk_t.shape[0]

    @torch.no_grad()
    def teacher_forward(self, teacher: PreTrainedModel | None, batch: TeacherBatch) -> Tensor:
        """Log-probability of each predicted token's truth: [K]."""
        if teacher is None:
            return stored_answers(batch).log_prob
        return score_tokens(teacher, batch.input, batch.predict, batch.targets)

    def signal(self, batch: TeacherBatch, teacher_output: Tensor, progress: float) -> ChunkSignal:
        log_prob = teacher_output.new_zeros(batch.chunk_t.shape[0]).index_add(0, batch.chunk, teacher_output)
        mix = None if self.mix is None else self.mix(progress, batch.chunk_t)
        objective = partial(self.objective, mix=mix)
        return ChunkSignal(log_prob, batch.student_chunk, objective, self.weight(batch.chunk_t))


@dataclass(frozen=True, kw_only=True)
class _TokenSignal:
    """Distributions of M tokens, of a live teacher or of a stored one."""

    objective: Callable[..., Tensor]
    """student's logits, teacher's logits and `mix` -> divergence, [c]"""
    mix: Tensor | None
    """[M]"""
    weight: Tensor
    """[M], 0 for tokens without a partner"""

    def divergence(self, student: Tensor, teacher: Tensor, tokens: slice) -> Tensor:
        """The objective of a chunk of c tokens, of logits over the same events: [c]."""
        return self.objective(student, teacher, mix=None if self.mix is None else self.mix[tokens])

    def loss(self, per_token: Tensor) -> Tensor:
        return (per_token * self.weight).sum()

    def least(self) -> Tensor:
        return self.weight.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class TokenSignal(_TokenSignal):
    """Distributions of M tokens over the shared vocabulary, made of hidden states a chunk at a time."""

    hidden: Tensor
    """[M, H_t], of each masked student token's partner; zero without one"""
    head: Tensor
    """[shared vocabulary, H_t]"""

    def per_token(self, logits: Tensor, log_prob: Tensor, tokens: slice) -> Tensor:
        with torch.no_grad():
            teacher = (self.hidden[tokens] @ self.head.T).float()
        return self.divergence(logits[:, : len(self.head)], teacher, tokens)


@dataclass(frozen=True, kw_only=True)
class StoredTokenSignal(_TokenSignal):
    """Distributions of M tokens over k + 1 events: the k likeliest tokens, and all others of the shared vocabulary as one.

    With k = vocabulary they are those of a live teacher. With fewer, KL(teacher || student) loses exactly
    r KL(teacher's rest || student's rest) of a token, r being the teacher's mass outside of the k: by the chain rule, never
    less than 0; and no logit's gradient is off by more than 2 r (times T, as KL has T^2 before it).
    """

    answers: TeacherAnswers
    """[M]; a placeholder for tokens without a partner"""
    log_partition: Tensor
    """[M], at the objective's temperature"""
    shared_vocab: int
    temperature: float

    def per_token(self, logits: Tensor, log_prob: Tensor, tokens: slice) -> Tensor:
        logits, temperature = logits[:, : self.shared_vocab], self.temperature
        top, teacher = self.answers.top[tokens], self.answers.top_logit[tokens]
        student = logits.gather(1, top)
        if top.shape[1] < self.shared_vocab:
            mass = (teacher / temperature - self.log_partition[tokens, None]).exp().sum(1)
            rest = self.log_partition[tokens] + (1 - mass).clamp(min=LEAST_MASS).log()
            others = logits.scatter(1, top, -torch.inf)
            student = torch.cat([student, temperature * (others / temperature).logsumexp(1, keepdim=True)], 1)
            teacher = torch.cat([teacher, temperature * rest[:, None]], 1)
        return self.divergence(student, teacher, tokens)


@dataclass(frozen=True)
class _TokenTerm:
    """KL, reverse KL, TIDAL: full distributions where both sides hold the same single token as a chunk."""

    name: str
    objective: Callable[..., Tensor]
    mix: Mix | None
    weight: Callable[[Tensor], Tensor]

    def count(self, batch: TeacherBatch) -> int:
        return int((batch.pair >= 0).sum())

    def mix_and_weight(self, batch: TeacherBatch, progress: float) -> tuple[Tensor | None, Tensor]:
        """Of every masked student token, [M] each; the weight is 0 for those without a partner."""
        mix = None if self.mix is None else self.mix(progress, batch.student_t)
        return mix, self.weight(batch.student_t) * (batch.pair >= 0)


@dataclass(frozen=True)
class TokenTerm(_TokenTerm):
    """Of a live teacher."""

    head: Tensor
    """Of the teacher, its rows of the shared vocabulary."""

    @torch.no_grad()
    def teacher_forward(self, teacher: PreTrainedModel | None, batch: TeacherBatch) -> Tensor:
        """Hidden state of each masked student token's partner: [M, H_t], zero without one."""
        assert teacher is not None
        hidden = hidden_states(teacher, batch.input, batch.predict)
        return torch.cat([hidden, hidden.new_zeros(1, hidden.shape[1])])[batch.pair]

    def signal(self, batch: TeacherBatch, teacher_output: Tensor, progress: float) -> TokenSignal:
        mix, weight = self.mix_and_weight(batch, progress)
        return TokenSignal(hidden=teacher_output, head=self.head, objective=self.objective, mix=mix, weight=weight)


@dataclass(frozen=True)
class StoredTokenTerm(_TokenTerm):
    """Of a teacher whose likeliest tokens are stored."""

    shared_vocab: int
    temperature: float
    stored_temperature: int
    """Which of the stored partitions is at this temperature"""

    def teacher_forward(self, teacher: PreTrainedModel | None, batch: TeacherBatch) -> Tensor:
        """Log-partition of each masked student token's partner: [M]."""
        return stored_answers(batch).with_none().log_partition[batch.pair, self.stored_temperature]

    def signal(self, batch: TeacherBatch, teacher_output: Tensor, progress: float) -> StoredTokenSignal:
        mix, weight = self.mix_and_weight(batch, progress)
        return StoredTokenSignal(
            answers=stored_answers(batch).with_none().at(batch.pair),
            log_partition=teacher_output,
            shared_vocab=self.shared_vocab,
            temperature=self.temperature,
            objective=self.objective,
            mix=mix,
            weight=weight,
        )


def stored_answers(batch: TeacherBatch) -> TeacherAnswers:
    """Those that came with the rows."""
    assert batch.answers is not None
    return batch.answers


def stored_temperatures(temperature: float, shared_vocab: int) -> tuple[float, ...]:
    """At which answers over a shared vocabulary are stored: T = 1, for measurements, and the objective's."""
    return (1.0, temperature) if shared_vocab else ()


def teacher_strategy(objective: Objective, teacher: Teacher, shared_vocab: int) -> Strategy:
    """The recipe's strategy for this teacher.

    Raises BadInput for an objective over full distributions where the tokenizers share none.
    """
    try:
        return resolve(objective.strategy, shared_tokenizer=shared_vocab > 0)
    except ValueError as error:
        raise BadInput(
            f"objective.strategy {error}, and teacher {teacher.name} has another one: choose calm, reverse_calm, "
            "calm_tidal, tide_cross or tide_shared"
        ) from None


def tidal_mix(tidal: Tidal) -> Mix:
    """lambda(p, t) as the recipe shapes it."""
    return partial(tidal_lambda, init=tidal.init, maximum=tidal.maximum, axes=tidal.axes, schedule=tidal.schedule)


def build_term(objective: Objective, teacher: Teacher, shared_vocab: int, head: Tensor | None) -> Term:
    """The recipe's objective, bound for one teacher with this head, [V_t, H_t]; None where its answers are stored.

    Raises BadInput as `teacher_strategy` does.
    """
    strategy = teacher_strategy(objective, teacher, shared_vocab)
    mix = tidal_mix(objective.tidal) if strategy.tidal else None
    weight = midrange_weight if strategy.tidal and objective.tidal.midrange else torch.ones_like
    temperature, direction = objective.temperature, strategy.direction
    if strategy.family == "calm":
        chunk_loss = partial(calm, temperature=temperature, direction=direction, teacher_floor=objective.teacher_floor)
        return ChunkTerm(teacher.name, chunk_loss, mix, weight)
    token_loss = partial(kl, temperature=temperature, direction=direction)  # type: ignore[arg-type]  # reverse_kl: CALM's
    if head is None:
        index = stored_temperatures(objective.temperature, shared_vocab).index(temperature)
        return StoredTokenTerm(teacher.name, token_loss, mix, weight, shared_vocab, temperature, index)
    return TokenTerm(teacher.name, token_loss, mix, weight, head[:shared_vocab])

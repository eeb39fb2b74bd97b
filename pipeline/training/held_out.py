"""Measurements on held-out rows: the student's loss, and its KL from every teacher, by t."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config.recipe import Objective, Teacher
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import Batch, BatchBuilder, Sample
from pipeline.data.order import accumulation_steps, balance
from pipeline.distributed.device_reads import read
from pipeline.distributed.topology import Topology
from pipeline.models.forward import head_of, log_prob_and_hit, score_tokens
from pipeline.training.terms import Term, build_term

TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)

ByTime = dict[str, float]
"""A value for each of TIMESTEPS."""


@dataclass(frozen=True)
class FixedNoiseRows:
    """Rows that are noised alike at every measurement, and the ranks that share them."""

    rows: AlignedRows
    builder: BatchBuilder
    topology: Topology
    micro_tokens: int
    """Most tokens of a micro-batch; raised to the largest row's where that has more."""

    def __len__(self) -> int:
        return len(self.rows)

    def spread(self, count: int) -> FixedNoiseRows:
        """At most `count` of the rows, at even distances."""
        return replace(self, rows=self.rows.pick(np.unique(np.linspace(0, len(self) - 1, count).astype(int))))

    def batches(self, t: float) -> Iterator[Batch]:
        """This rank's micro-batches at one timestep, on its device; as many on every rank."""
        costs, topology = self.builder.tokens(self.rows.student_lengths, self.rows.teacher_lengths), self.topology
        count = accumulation_steps(costs, len(self), topology.world_size, max(self.micro_tokens, int(costs.max())))
        groups = balance(costs, topology.world_size * count)
        for group in groups[topology.rank * count : (topology.rank + 1) * count]:
            yield self.builder([Sample(self.rows[i], ("validation", t, i)) for i in group], t).to(topology.device)


def validation_loss(
    student: Callable[..., Tensor], cross_entropy_weight: Callable[[Tensor], Tensor], rows: FixedNoiseRows
) -> ByTime:
    """Mean cross-entropy of a masked token, in nats. Collective.

    Args:
        student: `StudentWithLoss` in eval mode, or its engine.
        cross_entropy_weight: the student's, which is taken out.
    """

    def nats_and_tokens(batch: Batch, t: float) -> Tensor:
        nats = student(batch, (), 0.0)[0] / cross_entropy_weight(torch.tensor(t))
        return torch.stack([nats, batch.t.new_tensor(batch.targets.shape[0])])

    return by_time(means(rows, nats_and_tokens, 1)[:, 0])


def cloze_accuracy(student: PreTrainedModel, rows: FixedNoiseRows) -> ByTime:
    """Share of masked tokens whose truth the student ranks first. Collective."""

    def hits_and_tokens(batch: Batch, _t: float) -> Tensor:
        hits = score_tokens(student, batch.student, batch.predict, batch.targets, log_prob_and_hit)[:, 1].double()
        return torch.stack([hits.sum(), hits.new_tensor(hits.shape[0])])

    return by_time(means(rows, hits_and_tokens, 1)[:, 0])


@torch.no_grad()
def means(rows: FixedNoiseRows, sums_and_count: Callable[[Batch, float], Tensor], columns: int) -> Tensor:
    """Over all rows and ranks, of a micro-batch's [sums, count] at t: float64 [timesteps, columns]. Collective."""
    totals = torch.zeros(len(TIMESTEPS), columns + 1, dtype=torch.float64, device=rows.topology.device)
    for total, t in zip(totals, TIMESTEPS, strict=True):
        for batch in rows.batches(t):
            total += sums_and_count(batch, t)
    dist.all_reduce(totals)
    return totals[:, :-1] / totals[:, -1:].clamp(min=1)


def by_time(values: Tensor) -> ByTime:
    """A vector of one value per timestep."""
    return dict(zip(map(str, TIMESTEPS), read(values), strict=True))


def kl_terms(
    teachers: Sequence[Teacher], shared_vocab: Sequence[int], models: Sequence[PreTrainedModel | None]
) -> list[Term]:
    """What measures each teacher's divergence: KL(teacher || student) at T = 1, of tokens or of chunks."""
    return [
        build_term(Objective(strategy="kl" if shared else "calm", temperature=1.0), teacher, shared, head_of(model))
        for teacher, shared, model in zip(teachers, shared_vocab, models, strict=True)
    ]


@torch.no_grad()
def teacher_kl(
    student: Callable[..., Tensor], teachers: Sequence[tuple[Term, PreTrainedModel | None]], rows: FixedNoiseRows
) -> dict[str, ByTime]:
    """KL(teacher || student) in nats, by teacher and t. Collective.

    With a shared tokenizer: of the distributions over tokens, mean over masked tokens. Across tokenizers the common event
    is a chunk's text: KL of the two Bernoulli distributions of the true chunk, mean over chunks. T = 1, one view.

    Args:
        student: `StudentWithLoss` in eval mode, or its engine.
        teachers: each with its term of `kl_terms`.
        rows: with one view of every teacher's masked tokens.
    """
    terms = [term for term, _ in teachers]
    kl: dict[str, ByTime] = {term.name: {} for term in terms}
    for t in TIMESTEPS:
        sums, counts = torch.zeros(2, len(terms), dtype=torch.float64, device=rows.topology.device)
        for batch in rows.batches(t):
            taught = list(zip(teachers, batch.teachers, strict=True))
            outputs = [term.teacher_forward(model, part) for (term, model), part in taught]
            signals = [
                term.signal(part, output, 0.0) for ((term, _), part), output in zip(taught, outputs, strict=True)
            ]
            sums += student(batch, outputs, 0.0, terms)[1:]
            sums -= torch.stack([signal.least() for signal in signals])
            counts += counts.new_tensor([term.count(part) for (term, _), part in taught])
        both = torch.stack([sums, counts])
        dist.all_reduce(both)
        for name, value in zip(kl, read(both[0] / both[1].clamp(min=1)), strict=True):
            kl[name][str(t)] = value
    return kl

"""How far a student is from its teachers on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config.recipe import Objective, Teacher
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import BatchBuilder, TeacherBatch
from pipeline.distributed.topology import Topology
from pipeline.method.calm import calm
from pipeline.training.held_out import TIMESTEPS, held_out_batches
from pipeline.training.terms import Term, build_term


def distance_terms(teachers: Sequence[Teacher], shared_vocab: Sequence[int], models: Sequence[nn.Module]) -> list[Term]:
    """What measures the distance to each teacher: KL(teacher || student) at T = 1, of tokens or of chunks."""
    return [
        build_term(
            Objective(strategy="kl" if shared else "calm", temperature=1.0),
            teacher,
            shared,
            model.get_output_embeddings().weight,
        )
        for teacher, shared, model in zip(teachers, shared_vocab, models, strict=True)
    ]


@torch.no_grad()
def teacher_student_kl(
    student: Callable[..., Tensor],
    teachers: Sequence[tuple[Term, nn.Module]],
    rows: AlignedRows,
    builder: BatchBuilder,
    topology: Topology,
    budget: int,
) -> dict[str, dict[str, float]]:
    """KL(teacher || student) in nats for each teacher at each of TIMESTEPS. Collective.

    With a shared tokenizer: of the distributions over tokens, mean over masked tokens. Across tokenizers the common event
    is a chunk's text: KL of the two Bernoulli distributions of the true chunk, mean over chunks. T = 1, one view.

    Args:
        student: `StudentWithLoss`, or its engine.
        teachers: each with its term of `distance_terms`.
        builder: makes one view of every teacher's masked tokens.
    """
    terms = [term for term, _ in teachers]
    kl: dict[str, dict[str, float]] = {term.name: {} for term in terms}
    for t in TIMESTEPS:
        sums, counts = torch.zeros(2, len(terms), dtype=torch.float64, device=topology.device)
        for batch in held_out_batches(rows, builder, topology, budget, t):
            pairs = zip(teachers, batch.teachers, strict=True)
            observed = [term.observe(model, own) for (term, model), own in pairs]
            sums += student(batch, observed, 0.0, terms)[1:]
            sums -= torch.stack([_floor(*x) for x in zip(terms, batch.teachers, observed, strict=True)])
            counts += counts.new_tensor([term.count(own) for term, own in zip(terms, batch.teachers, strict=True)])
        both = torch.stack([sums, counts])
        dist.all_reduce(both)
        for name, value in zip(kl, (both[0] / both[1].clamp(min=1)).tolist(), strict=True):
            kl[name][str(t)] = value
    return kl


def _floor(term: Term, batch: TeacherBatch, observed: Tensor) -> Tensor:
    """The term's sum for a student that equals the teacher: its entropy for CALM, a cross-entropy; 0 for KL."""
    if term.row:
        return observed.new_zeros(())
    chunks = observed.new_zeros(batch.chunk_t.shape[0]).index_add(0, batch.chunk, observed)
    return calm(chunks, chunks, temperature=1.0).sum()

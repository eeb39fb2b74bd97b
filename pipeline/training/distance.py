"""How far a student is from its teachers on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.data import TeacherBatch
from pipeline.objectives import calm
from pipeline.recipe import Objective
from pipeline.training.plan import Plan
from pipeline.training.run import aligned_rows, batch_builder
from pipeline.training.step import StudentWithLoss
from pipeline.training.terms import Term, build_term
from pipeline.training.topology import Topology
from pipeline.training.validation import TIMESTEPS, held_out_batches


@torch.no_grad()
def teacher_student_kl(
    plan: Plan, topology: Topology, student: nn.Module, teachers: Sequence[nn.Module]
) -> dict[str, list[float]]:
    """KL(teacher || student) in nats at each of TIMESTEPS, for each teacher of the plan's recipe, on its validation rows.

    With a shared tokenizer: of the distributions over tokens, mean over masked tokens. Across tokenizers the common event
    is a chunk's text: KL of the two Bernoulli distributions of the true chunk, mean over chunks. T = 1, one view.
    """
    recipe = plan.recipe
    terms = [
        build_term(
            Objective(strategy="kl" if shared else "calm", temperature=1.0),
            teacher,
            shared,
            model.get_output_embeddings().weight,
        )
        for teacher, shared, model in zip(recipe.teachers, plan.shared_vocab, teachers, strict=True)
    ]
    module = StudentWithLoss(student, terms, torch.ones_like).eval()
    rows = aligned_rows(plan, "validation", recipe.teachers)
    builder = batch_builder(plan, student.config, [model.config for model in teachers], None)
    by_t = []
    for t in TIMESTEPS:
        sums, counts = torch.zeros(2, len(terms), dtype=torch.float64)
        for batch in held_out_batches(rows, builder, topology, recipe.optim.micro_tokens, t):
            observed = [term.observe(model, b) for term, model, b in zip(terms, teachers, batch.teachers, strict=True)]
            sums += module(batch, observed, 0.0)[1:].double().cpu()
            sums -= torch.tensor([_floor(*x) for x in zip(terms, batch.teachers, observed, strict=True)])
            counts += torch.tensor([term.count(b) for term, b in zip(terms, batch.teachers, strict=True)])
        by_t.append((sums / counts.clamp(min=1)).tolist())
    return {
        teacher.name: list(values) for teacher, values in zip(recipe.teachers, zip(*by_t, strict=True), strict=True)
    }


def _floor(term: Term, batch: TeacherBatch, observed: Tensor) -> float:
    """The term's sum for a student that equals the teacher: its entropy for CALM, a cross-entropy; 0 for KL."""
    if term.row:
        return 0.0
    chunks = observed.new_zeros(batch.chunk_t.shape[0]).index_add(0, batch.chunk, observed)
    return float(calm(chunks, chunks, temperature=1.0).sum())

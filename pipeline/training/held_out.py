"""Held-out rows: the student's loss by t, and the probe of every teacher before step 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import Batch, BatchBuilder, Sample, TeacherBatch
from pipeline.data.order import accumulation_steps, assign
from pipeline.distributed.topology import Topology
from pipeline.models.forward import log_prob_and_hit, score_tokens

TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)


def held_out_batches(
    rows: AlignedRows, builder: BatchBuilder, topology: Topology, budget: int, t: float
) -> Iterator[Batch]:
    """This rank's micro-batches of all rows at one timestep; as many on every rank, always with the same noise."""
    costs = builder.tokens(rows.student_lengths, rows.teacher_lengths)
    each = accumulation_steps(costs, len(rows), topology.world_size, max(budget, int(costs.max())))
    groups = assign(costs, topology.world_size * each)
    for group in groups[topology.rank * each : (topology.rank + 1) * each]:
        yield builder([Sample(rows[i], ("validation", t, i)) for i in group], t).to(topology.device)


@torch.no_grad()
def validation_loss(
    engine, rows: AlignedRows, builder: BatchBuilder, topology: Topology, budget: int
) -> dict[str, float]:
    """Mean cross-entropy of a masked token, in nats, at each timestep. Collective."""
    engine.eval()
    losses = {}
    for t in TIMESTEPS:
        total = torch.zeros(2, dtype=torch.float64, device=topology.device)
        weight = engine.module.cross_entropy_weight(torch.tensor(t))
        for batch in held_out_batches(rows, builder, topology, budget, t):
            total += torch.stack([engine(batch, (), 0.0)[0] / weight, batch.t.new_tensor(batch.targets.shape[0])])
        dist.all_reduce(total)
        losses[str(t)] = float(total[0] / total[1].clamp(min=1))
    engine.train()
    return losses


@torch.no_grad()
def probe(
    teachers: Sequence[tuple[str, nn.Module]],
    rows: AlignedRows,
    views: dict[str, BatchBuilder],
    topology: Topology,
    budget: int,
) -> dict[str, Any]:
    """What every teacher knows of held-out rows: mean log-probability of a masked token's truth and accuracy, by t.

    `views` maps `one_view` and `two_views` to their builders. Collective. `uniform` is what guessing would give: a teacher
    below it reads through a wrong tokenizer, template or mask.
    """
    result: dict[str, Any] = {"t": list(TIMESTEPS), "teachers": {}}
    for k, (name, model) in enumerate(teachers):
        facts = result["teachers"][name] = {"uniform": -math.log(model.get_output_embeddings().weight.shape[0])}
        for view, builder in views.items():
            sums = torch.zeros(len(TIMESTEPS), 3, dtype=torch.float64, device=topology.device)
            for i, t in enumerate(TIMESTEPS):
                for batch in held_out_batches(rows, builder, topology, budget, t):
                    sums[i] += _known(model, batch.teachers[k])
            dist.all_reduce(sums)
            log_prob, accuracy = (sums[:, :2] / sums[:, 2:].clamp(min=1)).T.tolist()
            facts |= {view: log_prob, f"accuracy_{view}": accuracy}
    return result


def _known(model: nn.Module, batch: TeacherBatch) -> Tensor:
    """Sums over predicted tokens: log-probability of the truth, right guesses, tokens: float64 [3]."""
    known = score_tokens(model, batch.input, batch.predict, batch.targets, log_prob_and_hit)
    return torch.cat([known.double().sum(0), known.new_tensor([known.shape[0]], dtype=torch.float64)])

"""A recipe on a number of GPUs, before the memory of its micro-batches matters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from pipeline.capacity.inputs import DataStats, synthetic_row
from pipeline.config.recipe import Recipe, compdemo_ratio
from pipeline.data.batch import Batch, BatchBuilder
from pipeline.data.blocks import EosTail
from pipeline.data.packing import Packed
from pipeline.distributed.topology import Topology
from pipeline.models.flex_attention import TILE, flex_inputs
from pipeline.training.build import batch_builder, reads_with_flex
from pipeline.training.preflight import DatasetNumbers, Plan

MEAN_OVER_T = [(i + 0.5) / 10 for i in range(10)]  # means over t are taken over these


@dataclass(frozen=True)
class PlannedRun:
    """What training would know after its preflight, and the shape of its micro-batches."""

    plan: Plan
    data: DataStats
    builder: BatchBuilder
    rows: int
    """Rows of the largest micro-batch, as rows of the longest length"""
    row_tokens: int
    """Tokens of the longest row over all inputs, as optim.micro_tokens counts them"""

    def full_batch(self, rows: int) -> Batch:
        """The most that this many rows can take: the longest ones, all maskable and all masked."""
        return self.builder([synthetic_row(self.data.longest, 1.0)] * rows, 1.0)


def plan_run(
    recipe: Recipe,
    engine: dict[str, Any],
    configs: tuple[PreTrainedConfig, dict[str, PreTrainedConfig]],
    data: DataStats,
    nodes: int,
    gpus_per_node: int,
    device: str = "cuda",
) -> PlannedRun:
    """Raises BadInput as a run would: for rows and expert parallelism that cannot be. device: type of the run's device."""
    student, teachers = configs
    ranks, batch = nodes * gpus_per_node, recipe.optim.global_batch
    topology = Topology(0, ranks, gpus_per_node, torch.device(device))
    shared = shared_vocab(recipe, configs, data)
    eos_tail = EosTail(0, frozenset({0})) if recipe.student.eos_tail else None
    plan = Plan(recipe, engine, topology, student, teachers, DatasetNumbers(shared, data.costs), eos_tail)
    longest = int(data.costs.max())
    return PlannedRun(
        plan,
        data,
        builder=batch_builder(plan, compdemo_ratio(recipe), torch.device(device)),
        rows=max(1, math.ceil(batch * data.costs.mean() / (ranks * plan.accumulation * longest))),
        row_tokens=longest,
    )


def shared_vocab(
    recipe: Recipe, configs: tuple[PreTrainedConfig, dict[str, PreTrainedConfig]], data: DataStats
) -> tuple[int, ...]:
    """Id prefix that the student shares with each teacher; where the tokenizers are not at hand, equal sizes stand in for equal
    vocabularies."""
    if data.shared_vocab is not None:
        return data.shared_vocab
    student, teachers = configs
    same = (teachers[teacher.name].vocab_size == student.vocab_size for teacher in recipe.teachers)
    return tuple(student.vocab_size if equal else 0 for equal in same)


@dataclass(frozen=True)
class RowMeans:
    """Sizes of an average row for one model, mean over t."""

    tokens: float
    """Through its layers, both views of a teacher included"""
    width: float
    """Tokens that each of them attends to, including those whose scores are computed and then masked"""
    predicted: float
    """Rows of its head"""


def row_means(run: PlannedRun) -> list[RowMeans]:
    """For the student, then for the teachers, as training lays rows out: what nobody reads is left out."""
    width = tile_width if reads_with_flex(run.plan.recipe, run.plan.topology.device) else row_width
    row = synthetic_row(run.data.mean, run.data.maskable)
    batches = [run.builder([row], t) for t in MEAN_OVER_T]
    inputs = [[(b.student, b.predict), *((t.input, t.predict) for t in b.teachers)] for b in batches]
    sizes = [
        [(int((packed.document >= 0).sum()), width(packed), predict.numel()) for packed, predict in models]
        for models in inputs
    ]
    return [RowMeans(*values) for values in np.array(sizes, float).mean(0).tolist()]


def row_width(packed: Packed) -> float:
    """Tokens that each one attends to under a dense mask: its row."""
    return packed.ids.shape[1]


def tile_width(packed: Packed) -> float:
    """Under FlexAttention: those of the tiles that are computed."""
    mask = flex_inputs(packed)["attention_mask"]
    return TILE * float((mask.kv_num_blocks + mask.full_kv_num_blocks).float().mean())

"""What is known of a run from its recipe, the models' configs and its data, before the size of micro-batches matters."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig

from pipeline.capacity import zero3
from pipeline.capacity.fake_step import fake_model, routed_bytes
from pipeline.capacity.flops import Flops, flops
from pipeline.capacity.rows import Data, sample
from pipeline.config.recipe import Recipe, compdemo_ratio
from pipeline.data.batch import BatchBuilder
from pipeline.data.blocks import EosTail
from pipeline.data.packing import Packed
from pipeline.distributed.topology import Topology
from pipeline.models.experts import MoE
from pipeline.training.build import batch_builder, student_with_loss
from pipeline.training.engine import student_dtype
from pipeline.training.preflight import DatasetNumbers, Plan

TIMESTEPS = [(i + 0.5) / 10 for i in range(10)]  # means over t are taken over these


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher's weights, in bytes, and what routing needs to know of it."""

    dense: int
    experts: int
    expert_parallel_size: int
    mixture_layers: int
    routed: int
    """Bytes that one token sends to its experts, in one layer"""
    flops: Flops


@dataclass(frozen=True)
class Facts:
    """What does not depend on the size of micro-batches."""

    plan: Plan
    data: Data
    rows_at_once: int
    """Rows of the largest micro-batch, as rows of the longest length"""
    row_cost: int
    """Tokens of the longest row over all inputs, as optim.micro_tokens counts them"""
    parameters: int
    shards: zero3.Shards
    offloaded: zero3.Shards
    """With the optimizer on the host"""
    student: Flops
    teachers: dict[str, TeacherFacts]
    builder: BatchBuilder
    configs: tuple[PreTrainedConfig, ...]
    """Of the student, then of the teachers"""


def gather_facts(
    recipe: Recipe,
    engine: dict[str, Any],
    settings: zero3.Settings,
    configs: tuple[PreTrainedConfig, dict[str, PreTrainedConfig]],
    data: Data,
    nodes: int,
    gpus_per_node: int,
) -> Facts:
    """Raises BadInput as a run would: for rows, expert parallelism and objectives that cannot be."""
    student, teachers = (_named(configs[0]), {name: _named(config) for name, config in configs[1].items()})
    ranks = nodes * gpus_per_node
    topology = Topology(0, ranks, gpus_per_node, torch.device("cpu"))
    shared = data.shared_vocab or {n: student.vocab_size * _same_vocab(student, c) for n, c in teachers.items()}
    numbers = DatasetNumbers(tuple(shared[t.name] for t in recipe.teachers), data.costs)
    plan = Plan.resolve(
        recipe, engine, topology, teachers, numbers, EosTail(0, frozenset({0})) if recipe.student.eos_tail else None
    )
    dtype, longest = student_dtype(engine), int(data.costs.max())
    with FakeTensorMode():
        model = fake_model(student, dtype)
        models = {t.name: fake_model(teachers[t.name], getattr(torch, t.dtype)) for t in recipe.teachers}
        module = student_with_loss(plan, model, list(models.values()))
        return Facts(
            plan,
            data,
            rows_at_once=max(
                1, math.ceil(recipe.optim.global_batch * data.costs.mean() / (ranks * plan.accumulation * longest))
            ),
            row_cost=longest,
            parameters=sum(p.numel() for p in model.parameters()),
            shards=zero3.shards(module, settings, ranks, dtype.itemsize),
            offloaded=zero3.shards(module, replace(settings, offload_optimizer=True), ranks, dtype.itemsize),
            student=flops(model),
            teachers={name: _teacher_facts(m, plan.expert_parallel_size[name]) for name, m in models.items()},
            builder=batch_builder(plan, student, list(teachers.values()), compdemo_ratio(recipe)),
            configs=(student, *teachers.values()),
        )


def _named(config: PreTrainedConfig) -> PreTrainedConfig:
    """With ids for the special tokens that only the tokenizer would name: sizes do not depend on them."""
    config = copy.deepcopy(config)
    for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, 0)
    return config


def _same_vocab(student: PreTrainedConfig, teacher: PreTrainedConfig) -> bool:
    """Stands in for the tokenizers where they are not at hand."""
    return student.vocab_size == teacher.vocab_size


def _teacher_facts(model: torch.nn.Module, size: int) -> TeacherFacts:
    element = model.dtype.itemsize
    mixtures = [module for module in model.modules() if isinstance(module, MoE)]
    experts = sum(p.numel() for module in mixtures for p in module.experts.parameters())
    dense = sum(p.numel() for p in model.parameters()) - experts
    return TeacherFacts(
        dense * element, experts * element // size, size, len(mixtures), routed_bytes(model), flops(model)
    )


@dataclass(frozen=True)
class Means:
    """What an average row is for one model, over t."""

    tokens: float
    """Through its layers, both views of a teacher included"""
    width: float
    """Tokens that each of them attends to, masked pairs included"""
    predicted: float
    """Rows of its head"""


def row_means(facts: Facts) -> list[Means]:
    """Of the student, then of the teachers, as training lays rows out: what nobody reads is left out."""
    row = sample(facts.data.mean, facts.data.maskable)
    batches = [facts.builder([row], t) for t in TIMESTEPS]
    inputs = [[(b.student, b.predict), *((t.input, t.predict) for t in b.teachers)] for b in batches]
    sizes = [[_sizes(packed, predict) for packed, predict in row] for row in inputs]
    return [Means(*values) for values in np.array(sizes, float).mean(0).tolist()]


def _sizes(packed: Packed, predict: torch.Tensor) -> tuple[int, int, int]:
    return int((packed.document >= 0).sum()), packed.ids.shape[1], predict.numel()

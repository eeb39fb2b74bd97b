"""A micro-step on the meta device: the code that trains, without memory and without values; its memory is counted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeSparseMoeBlock

from pipeline.capacity import zero1, zero3
from pipeline.capacity.cuda_kernels import count_norms_as_kernels, kernels_as_on
from pipeline.capacity.memory_tracker import MemoryTracker
from pipeline.capacity.model_stats import model_stats
from pipeline.capacity.planned_run import PlannedRun
from pipeline.capacity.zero import Shards, ZeroSettings
from pipeline.data.batch import Batch
from pipeline.models.families.llada2_moe_layers import Experts, MoE
from pipeline.models.flex_attention import use_flex
from pipeline.models.loading import build
from pipeline.training.build import reads_with_flex, student_with_loss
from pipeline.training.engine import student_dtype
from pipeline.training.preflight import Plan

TRACED_ROWS = (1, 8, 32, 40)  # by `estimate`; from 32 on the layers outgrow the head chunks, and all is linear
TRACED_LAYERS = (1, 2)  # behind the leading dense ones: each further layer of the student adds as much again


@dataclass(frozen=True)
class StepTrace:
    """Bytes of one micro-step beside weights and their gradients, and what is launched."""

    batch: int
    teachers: tuple[int, ...]
    """Most that each teacher's forward holds beside the batch"""
    teacher_tokens: tuple[int, ...]
    """Positions of each teacher's input (no bytes)"""
    teacher_outputs: int
    """What is kept of the teachers for the student's forward"""
    activations: int
    """What the student's forward keeps for its backward"""
    student: int
    """Most that the student's forward and backward hold, activations included"""
    operations: tuple[int, ...]
    """Kernels that the student's forward and backward launch, then each teacher's forward; DeepSpeed's left out"""


class BalancedExperts(nn.Module):
    """Experts with a known number of rows, `load` times as many as come in: the bytes of the real ones, whose row counts
    only values could tell."""

    def __init__(self, experts: Experts | Qwen3MoeExperts, load: float):
        super().__init__()
        self.gate_up_proj, self.down_proj, self.load = experts.gate_up_proj, experts.down_proj, load

    def forward(self, rows: Tensor, _counts: Tensor) -> Tensor:
        received = rows if self.load == 1 else rows.new_empty(round(self.load * len(rows)), rows.shape[1])
        gate, up = F.linear(received, self.gate_up_proj[0]).chunk(2, dim=1)
        return F.linear(F.silu(gate) * up, self.down_proj[0])[: len(rows)]


class BalancedTopKExperts(BalancedExperts):
    """In the place of Qwen3-MoE's, which are told the experts of every token."""

    def forward(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        out = super().forward(hidden.repeat_interleave(experts.shape[1], 0), experts)
        return (out.view(*experts.shape, -1) * weights[..., None]).sum(1).to(hidden.dtype)


class FakeStep:
    """The micro-step of a run, whose memory depends on its rows and not on the number of GPUs.

    Args:
        expert_imbalance: tokens of the busiest expert-parallel rank, as a multiple of the mean.

    Attributes:
        run, configs: as given, the student's config first.
        student, teachers: sizes of the models.
    """

    def __init__(
        self,
        run: PlannedRun,
        student: PreTrainedConfig,
        teachers: Sequence[PreTrainedConfig],
        expert_imbalance: float = 1.0,
    ):
        self.run, self.configs = run, (student, *teachers)
        self.expert_imbalance = expert_imbalance
        with torch.device("meta"):
            models = _build_models(run.plan, self.configs, expert_imbalance)
            self._module = student_with_loss(run.plan, models[0], models[1:])
        self.student, *self.teachers = map(model_stats, models)
        self.trace = cache(self._trace)

    def shards(self, settings: ZeroSettings, ranks: int) -> Shards:
        """What the engine makes of the student on this many GPUs."""
        count = {1: zero1.shards, 3: zero3.shards}[settings.stage]
        return count(self._module, settings, ranks, self.run.plan.accumulation)

    def estimate(self, rows: int, checkpointing: bool) -> StepTrace:
        """`trace`, for searches: linear between the rows that are traced, and beyond."""
        if rows in TRACED_ROWS:
            return self.trace(rows, checkpointing)
        low, high = next((pair for pair in pairwise(TRACED_ROWS) if rows < pair[1]), TRACED_ROWS[-2:])
        below, above = self.trace(low, checkpointing), self.trace(high, checkpointing)
        return _line(below, above, (rows - low) / (high - low))

    def _trace(self, rows: int, checkpointing: bool) -> StepTrace:
        """A micro-batch of this many longest rows, all masked."""
        batch = self.run.full_batch(rows)
        plan = with_checkpointing(self.run.plan, checkpointing)
        shallow, deep = ([_with_layers(config, n) for config in self.configs] for n in TRACED_LAYERS)
        low, high = (trace_step(plan, configs, batch, self.expert_imbalance) for configs in (shallow, deep))
        student, *teachers = (
            (config.num_hidden_layers - a.num_hidden_layers) / max(1, b.num_hidden_layers - a.num_hidden_layers)
            for config, a, b in zip(self.configs, shallow, deep, strict=True)
        )
        operations = zip((student, *teachers), low.operations, high.operations, strict=True)
        return replace(
            _line(low, high, student),
            teachers=high.teachers,  # a forward that keeps nothing: its second layer has all that a later one has
            operations=tuple(round(a + (b - a) * share) for share, a, b in operations),
        )


def _line(low: StepTrace, high: StepTrace, share: float) -> StepTrace:
    """The point at `share` of the way from one to the other, or beyond."""

    def at(a: Any, b: Any) -> Any:
        return tuple(map(at, a, b)) if isinstance(a, tuple) else round(a + (b - a) * share)

    return StepTrace(*map(at, astuple(low), astuple(high)))


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config with this many layers behind its leading dense ones, if it has more."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = min(config.num_hidden_layers, getattr(config, "first_k_dense_replace", 0) + layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return config


def with_checkpointing(plan: Plan, enabled: bool) -> Plan:
    student = replace(plan.recipe.student, activation_checkpointing=enabled)
    return replace(plan, recipe=replace(plan.recipe, student=student))


def _build_models(plan: Plan, configs: Sequence[PreTrainedConfig], imbalance: float) -> list[PreTrainedModel]:
    """Student and frozen teachers, on the meta device."""
    dtypes = [student_dtype(plan.engine_config), *(getattr(torch, teacher.dtype) for teacher in plan.recipe.teachers)]
    student, *teachers = (build(c, dtype=dtype, device="meta") for c, dtype in zip(configs, dtypes, strict=True))
    for teacher in teachers:
        teacher.requires_grad_(False).eval()
        for module in teacher.modules():
            if isinstance(module, MoE):
                module.add_module("experts", BalancedExperts(module.experts, imbalance))
            elif isinstance(module, Qwen3MoeSparseMoeBlock):
                module.add_module("experts", BalancedTopKExperts(module.experts, imbalance))
    device = plan.topology.device
    for model in (student, *teachers):
        if device.type == "cuda":
            count_norms_as_kernels(model)
        if reads_with_flex(plan.recipe, device):
            use_flex(model)
    return [student.train(), *teachers]


def trace_step(plan: Plan, configs: Sequence[PreTrainedConfig], batch: Batch, expert_imbalance: float) -> StepTrace:
    """Runs the micro-step of this batch: every teacher's forward, then the student's forward and backward."""
    with kernels_as_on(plan.topology.device.type), torch.device("meta"):
        student, *teachers = models = _build_models(plan, configs, expert_imbalance)
        for parameter in student.parameters():
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        module = student_with_loss(plan, student, teachers)
        empty = batch.map(lambda tensor: tensor.to("meta"))
        with MemoryTracker(t for m in models for t in (*m.parameters(), *m.buffers())) as tracker:
            peaks: list[int] = []
            operations: list[int] = []
            outputs: list[Tensor] = []
            for term, teacher, teacher_batch in zip(module.terms, teachers, empty.teachers, strict=True):
                before, launched = tracker.current, tracker.operations
                tracker.reset_peak()
                outputs.append(term.teacher_forward(teacher, teacher_batch))
                peaks.append(tracker.peak - before)
                operations.append(tracker.operations - launched)
            kept, launched = tracker.current, tracker.operations
            tracker.reset_peak()
            sums = module(empty, outputs, 0.5)
            activations = tracker.current - kept
            sums.sum().backward()
            student_peak = tracker.peak - kept
            operations.insert(0, tracker.operations - launched)
    tokens = tuple(teacher.input.ids.numel() for teacher in batch.teachers)
    return StepTrace(_storage_bytes(batch), tuple(peaks), tokens, kept, activations, student_peak, tuple(operations))


def _drop_gradient(parameter: Tensor) -> None:
    """A gradient leaves as soon as it exists: to its bucket."""
    parameter.grad = None


def _storage_bytes(batch: Batch) -> int:
    sizes: list[int] = []
    batch.map(lambda tensor: sizes.append(tensor.untyped_storage().nbytes()))
    return sum(sizes)

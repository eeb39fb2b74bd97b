"""A micro-step on fake tensors: the code that trains, without memory and without values; what it holds is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import PreTrainedConfig

from pipeline.capacity.live_bytes import LiveBytes
from pipeline.data.batch import Batch
from pipeline.models.expert_parallel import mixture_layers
from pipeline.models.experts import MoE
from pipeline.models.loading import build
from pipeline.training.build import student_with_loss
from pipeline.training.engine import student_dtype
from pipeline.training.preflight import Plan


@dataclass(frozen=True)
class Held:
    """Bytes of one micro-step beside weights and their gradients."""

    batch: int
    teachers: tuple[int, ...]
    """Most that each teacher's forward holds beside the batch"""
    exchanged: tuple[int, ...]
    """AutoEP's buffers, where experts are shared out: three times what tokens send to their experts in one layer (as sent,
    as received, and in the experts' order)"""
    observed: int
    """What is kept of the teachers for the student's forward"""
    activations: int
    """What the student's forward keeps for its backward"""
    student: int
    """Most that the student's forward and backward hold, activations included"""


class EvenExperts(nn.Module):
    """Experts that all get as many rows: the bytes of the real ones, whose row counts only values could tell."""

    def __init__(self, experts: nn.Module):
        super().__init__()
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj

    def forward(self, rows: Tensor, _counts: Tensor) -> Tensor:
        gate, up = F.linear(rows, self.gate_up_proj[0]).chunk(2, dim=1)
        return F.linear(F.silu(gate) * up, self.down_proj[0])


def fake_model(config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The model on fake tensors; to be called in a FakeTensorMode."""
    model = build(config, dtype=dtype, device="cpu")
    for module in model.modules():
        if isinstance(module, MoE):
            module.experts = EvenExperts(module.experts)
    return model


def routed_bytes(model: nn.Module) -> int:
    """What one token sends to its experts in one layer; 0 without any."""
    if not mixture_layers(model.config):
        return 0
    return model.config.num_experts_per_tok * model.config.hidden_size * model.dtype.itemsize


def hold(
    plan: Plan, student: PreTrainedConfig, teachers: Sequence[PreTrainedConfig], batch: Batch
) -> tuple[Held, Held]:
    """Runs the micro-step of this batch: every teacher's forward, then the student's forward and backward, without
    activation checkpointing and with it."""
    dtypes = [getattr(torch, teacher.dtype) for teacher in plan.recipe.teachers]
    with FakeTensorMode() as mode:
        model = fake_model(student, student_dtype(plan.engine_config)).train()
        models = [fake_model(c, d).requires_grad_(False).eval() for c, d in zip(teachers, dtypes, strict=True)]
        for parameter in model.parameters():  # a gradient leaves as soon as it is there: to its bucket
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        module = student_with_loss(_with_checkpointing(plan, False), model, models)
        batch = batch.map(mode.from_tensor)
        with LiveBytes(t for m in (model, *models) for t in (*m.parameters(), *m.buffers())) as live:
            peaks, observed = [], []
            for term, teacher, own in zip(module.terms, models, batch.teachers, strict=True):
                before = live.now
                live.reset_peak()
                observed.append(term.teacher_forward(teacher, own))
                peaks.append(live.peak - before)
            kept = live.now
            plain = _student(live, module, batch, observed)
            checkpointing = student_with_loss(_with_checkpointing(plan, True), model, models)
            checkpointed = _student(live, checkpointing, batch, observed)
    sent = [3 * own.input.ids.numel() * routed_bytes(t) for own, t in zip(batch.teachers, models, strict=True)]
    return tuple(Held(_bytes(batch), tuple(peaks), tuple(sent), kept, *own) for own in (plain, checkpointed))


def _with_checkpointing(plan: Plan, enabled: bool) -> Plan:
    student = replace(plan.recipe.student, activation_checkpointing=enabled)
    return replace(plan, recipe=replace(plan.recipe, student=student))


def _student(live: LiveBytes, module: nn.Module, batch: Batch, observed: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes that the forward leaves for the backward, and the most that both hold."""
    before = live.now
    live.reset_peak()
    sums = module(batch, observed, 0.5)
    left = live.now - before
    sums.sum().backward()
    return left, live.peak - before


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _bytes(batch: Batch) -> int:
    sizes: list[int] = []
    batch.map(lambda tensor: sizes.append(tensor.untyped_storage().nbytes()))
    return sum(sizes)

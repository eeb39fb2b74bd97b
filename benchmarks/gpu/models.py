"""The published models' shapes with random weights, made where they live, and one distillation step of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.gpu.record import Clock, device
from benchmarks.step import builder, noised
from benchmarks.workload import Shape
from pipeline.capacity.model_stats import model_stats
from pipeline.config.recipe import Objective, Optim, Teacher
from pipeline.data.batch import Batch
from pipeline.data.packing import Packed
from pipeline.distributed.topology import start
from pipeline.method.attention_mask import attention_mask
from pipeline.method.tidal import cross_entropy_weight
from pipeline.models.flex_attention import TILE, use_flex
from pipeline.training.engine import build_engine, read_engine_config
from pipeline.training.step import StudentWithLoss, counts
from pipeline.training.terms import Term, build_term


def configs(toy: bool) -> dict[str, Any]:
    """The student, both published teachers, and `llada2_ep8`: what a rank of eight holds and computes.

    Of eight ranks each has an eighth of the experts and, on average, as many rows for them as its own tokens send out, so 32
    experts that share all rows do the same products on the same shapes; the exchange between ranks is left out.
    """
    if toy:
        llada2 = workload.llada2(600, 64, 2)
        return {
            "student": workload.qwen3(600, 64, 2),
            "llada2": llada2,
            "llada2_ep8": llada2,
            "wedlm": workload.qwen3(600, 96, 2),
        }
    share = copy.deepcopy(workload.REAL["llada2"])
    share.num_experts = share.num_experts // 8
    return {**workload.REAL, "llada2_ep8": share}


def make(name: str, toy: bool) -> nn.Module:
    """A model in bfloat16 (toy: float32), in eval mode."""
    dtype = torch.float32 if toy else torch.bfloat16
    return workload.model(configs(toy)[name], device=device(), dtype=dtype).eval()


model = cache(make)
"""The same, made once per process."""


def shape(teacher: str, rows: int, toy: bool, **changes: Any) -> Shape:
    """The paper's lengths: 512 tokens of the student, 1,024 at most of the teacher; 400 of the student's are the answer."""
    chosen = configs(toy)
    if toy:
        return Shape(chosen["student"], chosen[teacher], 2, 64, 72, 40, block_size=8, **changes)
    return Shape(chosen["student"], chosen[teacher], rows, 512, 564, 400, **changes)


@dataclass
class Distillation:
    """An engine, its teacher and one micro-batch: the step that a training loop takes."""

    engine: Any
    teacher: nn.Module
    term: Term
    batch: Batch
    """on the CPU"""
    flops: float
    """that the result of a step needs"""

    @classmethod
    def of(
        cls,
        teacher_name: str,
        shape: Shape,
        *,
        engine: str,
        compdemo: bool,
        strategy: str,
        flex: bool,
        toy: bool,
        fixed_t: float | None = None,
    ) -> Distillation:
        """A student of its own, and the process's teacher."""
        start(timedelta(minutes=5))
        student, teacher = make("student", toy).train(), model(teacher_name, toy).requires_grad_(False)
        for each in (student, teacher):
            each.__dict__.pop("packed_inputs", None)
            each.set_attn_implementation("sdpa")
            if flex:
                use_flex(each)
        head = teacher.get_output_embeddings().weight
        term = build_term(Objective(strategy), Teacher("teacher", ""), shape.shared_vocabulary, head)
        settings = read_engine_config(Path(f"ds_configs/{engine}.json"))
        if toy:
            settings.pop("bf16", None)
        build = replace(builder(shape, compdemo), row_multiple=TILE)
        batch = build(noised(shape), fixed_t)
        flops = step_flops(student, teacher, batch)  # before ZeRO-3 takes the parameters apart
        wrapped = build_engine(StudentWithLoss(student, [term], cross_entropy_weight), settings, Optim(lr=1e-5), 1)
        return cls(wrapped, teacher, term, batch, flops)

    def step(self, batch: Batch, denominators: Tensor, clock: Clock) -> Tensor:
        """One optimizer step of one micro-batch that is on the device already; nothing waits."""
        outputs = [self.term.teacher_forward(self.teacher, batch.teachers[0])]
        clock.done("teacher")
        loss = (self.engine(batch, outputs, 0.5) / denominators).sum()
        clock.done("student forward")
        self.engine.backward(loss)
        clock.done("backward")
        self.engine.step()
        clock.done("optimizer")
        return loss.detach()

    def on_device(self) -> tuple[Batch, Tensor]:
        """The micro-batch and its denominators."""
        return self.batch.to(device()), counts(self.batch, [self.term]).to(device())

    def close(self) -> None:
        """Lets go of the student and its engine; the teacher stays."""
        for parameter in self.engine.module.parameters():
            parameter.grad = None
        self.engine.destroy()
        self.engine = None


def step_flops(student: nn.Module, teacher: nn.Module, batch: Batch) -> float:
    """That the result needs: nothing made twice, no hidden pair, no padding of experts; a backward is two forwards."""

    def forward(model: nn.Module, packed: Packed, predicted: Tensor) -> float:
        costs, tokens = model_stats(model).flops, int((packed.document >= 0).sum())
        return costs.token * tokens + costs.pair * visible_pairs(packed) + costs.head * len(predicted)

    taught = batch.teachers[0]
    return 3 * forward(student, batch.student, batch.predict) + forward(teacher, taught.input, taught.predict)


def visible_pairs(packed: Packed) -> int:
    """Pairs of tokens, padding left out, of which the first sees the second."""
    rows = zip(packed.document, packed.block, packed.noisy, strict=True)
    return sum(int((attention_mask(d[None], b[None], n[None])[0, 0] & (d >= 0)).sum()) for d, b, n in rows)


def turns(distillation: Distillation, warm: int, count: int) -> tuple[list[dict[str, float]], Callable[[], float]]:
    """Times of the parts of `count` steps after some that do not count; and the last loss, for whoever reads it."""
    batch, denominators = distillation.on_device()
    clocks = []
    for _ in range(warm + count):
        clocks.append(Clock())
        loss = distillation.step(batch, denominators, clocks[-1])
    return [clock.milliseconds() for clock in clocks[warm:]], lambda: float(loss)

"""CPU float32 = GPU float32 = GPU bfloat16, within the rounding of each: step, sampler, grouped expert products, FlexAttention."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import workload
from benchmarks.gpu.record import Record, arguments, device
from benchmarks.step import builder, noised
from benchmarks.workload import Shape
from pipeline.config.recipe import Objective, Teacher
from pipeline.decoding.sampler import GenerateConfig, generate
from pipeline.method.tidal import cross_entropy_weight
from pipeline.models.families.llada2_moe_layers import grouped_linear
from pipeline.models.flex_attention import use_flex
from pipeline.models.forward import hidden_states
from pipeline.training.step import StudentWithLoss, counts
from pipeline.training.terms import build_term

LAYERS = 4 if torch.cuda.is_available() else 2
STUDENT = workload.qwen3(4096, 256, LAYERS)
TEACHER = workload.llada2(4352, 256, LAYERS, num_attention_heads=4, head_dim=64)
# relative error of a norm (losses, gradients, hidden states), by dtype
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative to the norm; NaN is no number below any tolerance."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Step:
    """Losses and gradients of one micro-step."""

    sums: Tensor
    gradients: dict[str, Tensor]

    @classmethod
    def of(cls, strategy: str, where: str, dtype: torch.dtype, flex: bool) -> Step:
        """The same weights and noise, whatever the device, the dtype and the kernels."""
        shape = Shape(STUDENT, TEACHER, rows=6, student_length=256, teacher_length=300, response=180, block_size=16)
        shape = shape.but(shared_tokenizer=strategy == "tidal")
        student = workload.model(shape.student).to(where, dtype)
        teacher = workload.teacher(shape.teacher).to(where, dtype)
        for model in (student, teacher) if flex else ():
            use_flex(model)
        term = build_term(
            Objective(strategy), Teacher("teacher", ""), shape.shared_vocabulary, teacher.get_output_embeddings().weight
        )
        step = StudentWithLoss(student, [term], cross_entropy_weight)
        batch = builder(shape, compdemo=True)(noised(shape))
        denominators = counts(batch, [term])
        batch = batch.to(where)
        sums = step(batch, [term.teacher_forward(teacher, batch.teachers[0])], 0.5) / denominators.to(where)
        sums.sum().backward()
        return cls(sums.detach().cpu(), {n: p.grad.float().cpu() for n, p in student.named_parameters()})


def step(expected: Step, strategy: str, dtype: torch.dtype, flex: bool) -> dict[str, Any]:
    """Losses and gradients against the CPU's in float32."""
    actual = Step.of(strategy, device(), dtype, flex)
    by_name = {name: error(actual.gradients[name], value) for name, value in expected.gradients.items()}
    ours, theirs = (torch.cat([x.flatten() for x in s.gradients.values()]) for s in (actual, expected))
    result = {
        "losses": actual.sums.tolist(),
        "losses_expected": expected.sums.tolist(),
        "losses_error": error(actual.sums, expected.sums),
        "gradient_error": error(ours, theirs),
        "worst_gradient": max(by_name, key=by_name.get),
        "worst_gradient_error": max(by_name.values()),
    }
    limit = TOLERANCE[str(dtype).removeprefix("torch.")]
    return result | {"equal": result["losses_error"] <= limit and result["gradient_error"] <= 2 * limit}


def packed_hidden_states(family: str, dtype: torch.dtype, flex: bool) -> dict[str, Any]:
    """Packed rows of many lengths: FlexAttention or SDPA on the GPU against SDPA on the CPU in float32."""
    config = {"qwen3": STUDENT, "llada2": TEACHER}[family]
    shape = Shape(STUDENT, TEACHER, rows=7, student_length=200, teacher_length=260, response=130, block_size=16)
    batch = builder(shape, compdemo=False)(noised(shape))
    packed, places = batch.student, batch.predict
    if family == "llada2":
        packed, places = batch.teachers[0].input, batch.teachers[0].predict
    with torch.no_grad():
        expected = hidden_states(workload.teacher(config), packed, places)
        model = workload.teacher(config).to(device(), dtype)
        if flex:
            use_flex(model)
        on_device = type(packed)(*(x.to(device()) for x in vars(packed).values()))
        actual = hidden_states(model, on_device, places.to(device()))
    size = error(actual, expected)
    return {"error": size, "equal": size <= TOLERANCE[str(dtype).removeprefix("torch.")]}


def grouped_products(dtype: torch.dtype) -> dict[str, Any]:
    """One product per expert, some of which have no rows, against each by itself in float64."""
    counts_of = torch.tensor([0, 3, 70, 0, 1, 129, 0, 13])
    rows = torch.randn(int(counts_of.sum()), 256, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 384, 256, generator=torch.Generator().manual_seed(1)) / 16
    pieces = zip(rows.split(counts_of.tolist()), weight, strict=True)
    expected = torch.cat([F.linear(x.double(), w.double()) for x, w in pieces])
    actual = grouped_linear(rows.to(device(), dtype), weight.to(device(), dtype), counts_of.to(device()))
    size = error(actual, expected)
    return {"error": size, "equal": size <= {torch.float32: 1e-3, torch.bfloat16: 1e-2}[dtype]}


def sampler(family: str, dtype: torch.dtype, batch: int) -> dict[str, Any]:
    """Tokens against the CPU's in float32: all the same in float32; bfloat16 may decide close calls otherwise."""
    config = workload.qwen3(4096, 256, LAYERS, initializer_range=0.1)
    if family == "llada2":
        config = workload.llada2(4352, 256, LAYERS, num_attention_heads=4, head_dim=64, initializer_range=0.1)
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3900, (20 + 9 * n,), generator=draw).tolist() for n in range(batch)]
    decoding = GenerateConfig(max_new_tokens=48, block_size=16, steps=48)
    expected = generate(workload.teacher(config), prompts, decoding)
    actual = generate(workload.teacher(config).to(device(), dtype), prompts, decoding)
    same = [a == b for x, y in zip(actual, expected, strict=True) for a, b in zip(x, y, strict=False)]
    share = sum(same) / max(1, sum(map(len, expected)))
    return {"same_tokens": share, "equal": share == 1.0 if dtype == torch.float32 else None}


def main() -> None:
    """All cases."""
    options = arguments(__doc__)
    record = Record("equality", options)
    float32, bfloat16 = torch.float32, torch.bfloat16
    gpu = torch.cuda.is_available()
    for dtype in (float32, bfloat16):
        record.case(grouped_products, dtype=dtype)
    for family in ("qwen3", "llada2"):
        record.case(sampler, family=family, dtype=float32, batch=5)
        for dtype, flex in ((float32, False), (bfloat16, False), *(((float32, True), (bfloat16, True)) if gpu else ())):
            record.case(packed_hidden_states, family=family, dtype=dtype, flex=flex)
    record.case(sampler, family="qwen3", dtype=bfloat16, batch=5)
    for strategy in ("reverse_calm",) if options.cpu else ("reverse_calm", "tidal"):
        expected = Step.of(strategy, "cpu", float32, False)
        for dtype, flex in ((float32, False), (bfloat16, False), *(((float32, True), (bfloat16, True)) if gpu else ())):
            record.case(partial(step, expected), strategy=strategy, dtype=dtype, flex=flex)
    sys.exit(record.failed())


if __name__ == "__main__":
    main()

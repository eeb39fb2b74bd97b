"""The step at the published models' sizes: time by part, tokens/s, MFU, memory; SDPA and FlexAttention, chunk sizes, CompDemo."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.record import Clock, Record, arguments, device, free_memory, medians, peak_gb
from benchmarks.naive.step import NaiveStep
from benchmarks.step import noised
from pipeline.method.chunked_lm_head import CHUNK_ELEMENTS, chunked_lm_head, token_log_prob

PEAK_TFLOPS = 989.0  # H100 SXM, dense bfloat16


def distillation(
    teacher: str,
    rows: int,
    toy: bool,
    engine: str = "zero1_bf16",
    strategy: str = "reverse_calm",
    compdemo: bool = True,
    flex: bool = False,
    longest: bool = False,
    turns: int = 5,
) -> dict[str, Any]:
    """Medians of the parts of a step, from the GPU's clock; the peak is that of the whole step, models included.

    longest: rows as `plan` counts them, all tokens the answer's and masked, the teacher's 1,024.
    """
    shape = models.shape(teacher, rows, toy, shared_tokenizer=strategy == "tidal")
    if longest:
        shape = shape.but(teacher_length=1024, response=511)
    pair = models.Distillation.of(
        teacher, shape, engine=engine, compdemo=compdemo, strategy=strategy, flex=flex, toy=toy,
        fixed_t=1.0 if longest else None,
    )  # fmt: skip
    free_memory()
    times, loss = models.turns(pair, warm=2, count=turns)
    parts, flops = medians(times), pair.flops
    seconds = parts["total"] / 1000
    student, other = pair.batch.student, pair.batch.teachers[0].input
    result = {
        "parts_ms": parts,
        "all_total_ms": [turn["total"] for turn in times],
        "student_rows_length": list(student.ids.shape),
        "teacher_rows_length": list(other.ids.shape),
        "masked": len(pair.batch.predict),
        "predicted": len(pair.batch.teachers[0].predict),
        "tokens": pair.batch.tokens,
        "tokens_per_s": pair.batch.tokens / seconds,
        "model_tflop": flops / 1e12,
        "mfu": flops / seconds / 1e12 / PEAK_TFLOPS,
        "loss": loss(),
        **peak_gb(),
    }
    pair.close()
    return result


def kernels(teacher: str, rows: int, toy: bool, most: int = 20) -> dict[str, Any]:
    """Where the GPU's time goes: the kernels of each part that take most, in ms, with their number."""
    pair = models.Distillation.of(
        teacher, models.shape(teacher, rows, toy), engine="zero1_bf16", compdemo=True, strategy="reverse_calm",
        flex=True, toy=toy,
    )  # fmt: skip
    batch, denominators = pair.on_device()
    for _ in range(2):
        pair.step(batch, denominators, Clock())
    result, kept = {}, {}

    def profiled(name: str, run: Callable[[], Any]) -> None:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            started = time.perf_counter()
            kept[name] = run()
            torch.cuda.synchronize()
        events = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
        result[name] = {
            "wall_ms": 1000 * (time.perf_counter() - started),
            "gpu_ms": sum(e.self_device_time_total for e in events) / 1000,
            "launches": sum(e.count for e in events),
            "top": [[e.key[:90], e.self_device_time_total / 1000, e.count] for e in events[:most]],
        }

    profiled("teacher", lambda: [pair.term.teacher_forward(pair.teacher, batch.teachers[0])])
    profiled("forward", lambda: (pair.engine(batch, kept["teacher"], 0.5) / denominators).sum())
    profiled("backward", lambda: pair.engine.backward(kept["forward"]))
    profiled("optimizer", pair.engine.step)
    pair.close()
    return result


def naive(rows: int, toy: bool, compdemo: bool = True, turns: int = 3) -> dict[str, Any]:
    """The plain yardstick (benchmarks/naive) with the EP-8 shape of the teacher: full logits, a teacher pass per view."""
    student, teacher = models.make("student", toy).train(), models.model("llada2_ep8", toy).requires_grad_(False)
    for each in (student, teacher):
        each.__dict__.pop("packed_inputs", None)
        each.set_attn_implementation("sdpa")
    shape = models.shape("llada2_ep8", rows, toy)
    step = NaiveStep(student, teacher, block_size=shape.block_size, tidal=False, compdemo=compdemo)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    samples, times = noised(shape), []
    free_memory()
    for _ in range(1 + turns):
        clock = Clock()
        loss = step.loss(samples, 0.5)
        clock.done("forward")
        loss.backward()
        clock.done("backward")
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.done("optimizer")
        times.append(clock.milliseconds())
    return {"parts_ms": medians(times[1:]), "loss": float(loss.detach()), **peak_gb()}


def head(elements: int, rows: int, toy: bool) -> dict[str, Any]:
    """The student's LM head alone, forward and backward, with that many elements of logits at once."""
    weight = models.model("student", toy).get_output_embeddings().weight
    hidden = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device, requires_grad=True)
    tokens = torch.randint(weight.shape[0], (rows,), device=weight.device)
    kept, times = CHUNK_ELEMENTS[weight.device.type], []
    CHUNK_ELEMENTS[weight.device.type] = elements
    free_memory()
    for _ in range(4):
        clock = Clock()
        values = chunked_lm_head(lambda logits, chunk: token_log_prob(logits, tokens[chunk]), hidden, weight)
        clock.done("forward")
        values.sum().backward()
        clock.done("backward")
        times.append(clock.milliseconds())
        weight.grad = None
    CHUNK_ELEMENTS[weight.device.type] = kept
    return {"parts_ms": medians(times[1:]), **peak_gb()}


def ceilings() -> dict[str, Any]:
    """What this card does at best: a bfloat16 product of 8192 cubed, and a copy."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device()) for _ in range(2))
    big = torch.empty(1 << 30, dtype=torch.int8, device=device()).random_()
    times = []
    for _ in range(8):
        clock = Clock()
        a @ b
        clock.done("product")
        big.clone()
        clock.done("copy")
        times.append(clock.milliseconds())
    best = medians(times[2:])
    return {"tflops": 2 * 8192**3 / best["product"] / 1e9, "copy_gb_per_s": 2 * big.numel() / best["copy"] / 1e6}


def main() -> None:
    """All cases."""
    options = arguments(__doc__)
    record = Record("step", options)
    toy = options.cpu
    if toy:
        record.case(head, elements=1 << 12, rows=100, toy=toy)
        record.case(distillation, teacher="llada2_ep8", rows=2, toy=toy, turns=1)
        record.case(naive, rows=2, toy=toy, turns=1)
        sys.exit(record.failed())
    record.case(ceilings)
    small = {"teacher": "llada2_ep8", "rows": 16, "toy": toy}
    record.case(distillation, **small, flex=True)
    record.case(distillation, **small, flex=True, compdemo=False)
    record.case(distillation, **small)
    record.case(kernels, **small)
    for elements in (1 << 24, 1 << 26, 1 << 27, 1 << 28):
        record.case(head, elements=elements, rows=4096, toy=toy)
    record.case(naive, rows=4, toy=toy)
    record.case(distillation, **small | {"rows": 4}, flex=True)
    if not options.short:
        record.case(distillation, **small | {"rows": 32}, flex=True)
        record.case(distillation, **small, flex=True, strategy="tidal")
        record.case(distillation, **small, flex=True, engine="zero3_bf16")
    models.model.cache_clear()
    free_memory()
    record.case(distillation, **small | {"teacher": "llada2"}, flex=True)
    if not options.short:
        whole = small | {"teacher": "llada2"}
        record.case(distillation, **whole | {"rows": 13}, engine="zero3_bf16", compdemo=False, longest=True, turns=2)
        record.case(distillation, **whole, flex=True, compdemo=False)
    sys.exit(record.failed())


if __name__ == "__main__":
    main()

"""Time and memory of a training step, optimizer included, beside a plain implementation of the same step.

`python benchmarks/step.py`: student hidden 128, teacher hidden 256, 4 layers each, 16 experts, vocabularies 151,936 and
157,184, 4 rows, student length 512, teacher length 564, 1,336 response tokens, float32. Both start from the same weights
and see the same noise; their losses are compared. The pipeline's step runs in its DeepSpeed engine, the plain one under
torch alone. `--real` takes LLaDA2.0-mini's and Qwen3-0.6B's shapes with random weights in bfloat16: needs a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
import statistics
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, workload
from benchmarks.naive.step import NaiveStep
from benchmarks.workload import Shape
from pipeline.config.recipe import Objective, Optim, Teacher
from pipeline.core.errors import exit_code
from pipeline.data.batch import BatchBuilder, InputLayout, Sample, TeacherLayout
from pipeline.data.blocks import OneBlock, SequenceBlocks
from pipeline.distributed.topology import start
from pipeline.method.tidal import cross_entropy_weight
from pipeline.training.engine import build_engine, read_engine_config
from pipeline.training.step import StudentWithLoss, counts
from pipeline.training.terms import build_term

LR = 1e-4
# published trainer, 2 cores of another machine: CPU-seconds, seconds and peak GB of a step, as far as measured
CASES = {
    "Reverse CALM": ("reverse_calm", False, 28, 18, 8.4),
    "Reverse CALM + CompDemo": ("reverse_calm", True, 31, None, None),
    "TIDAL": ("tidal", False, 33, 19, 8.2),
    "TIDAL + CompDemo": ("tidal", True, 43, 26, 9.3),
}
SMALL = Shape(workload.qwen3(), workload.llada2())
QUICK = Shape(workload.qwen3(1024, 64, 2), workload.llada2(1200, 64, 2), 2, 64, 72, 40, block_size=8)
REAL = Shape(workload.REAL["student"], workload.REAL["llada2"], rows=8, teacher_length=1024, response=400)


def ours(
    shape: Shape,
    strategy: str,
    compdemo: bool,
    engine: str = "zero3",
    real: bool = False,
    fixed_t: float | None = None,
) -> Callable[[int], dict]:
    """The pipeline's step: noise, teacher, student, backward, clipping, AdamW; turn -> loss, seconds of the parts, FLOPs.

    FLOPs are those of the first turn that is run, recomputation included (grouped products are not counted).
    """
    topology, config = start(timedelta(minutes=10)), read_engine_config(Path(f"ds_configs/{engine}.json"))
    device, dtype = str(topology.device), torch.bfloat16 if real else torch.float32
    student = workload.model(shape.student, device=device, dtype=dtype)
    teacher = workload.teacher(shape.teacher, device=device, dtype=dtype)
    head = teacher.get_output_embeddings().weight
    term = build_term(Objective(strategy), Teacher("teacher", ""), shape.shared_vocabulary, head)
    build = builder(shape, compdemo)
    wrapped = build_engine(StudentWithLoss(student, [term], cross_entropy_weight), config, Optim(lr=LR), accumulation=1)
    samples = noised(shape)

    def step(turn: int, parts: measure.Parts) -> float:
        batch = build(samples, fixed_t)
        denominators = counts(batch, [term]).to(device)
        batch = batch.to(device)
        parts.done("batch s")
        outputs = [term.teacher_forward(teacher, batch.teachers[0])]
        parts.done("teacher s")
        loss = (wrapped(batch, outputs, turn / 100) / denominators).sum()
        parts.done("student s")
        wrapped.backward(loss)
        parts.done("backward s")
        wrapped.step()
        parts.done("optimizer s")
        return float(loss.detach())

    flops, masked = 0, build(samples, fixed_t).targets.shape[0]

    def run(turn: int) -> dict:
        nonlocal flops
        parts = measure.Parts()
        with nullcontext() if flops else FlopCounterMode(display=False) as counter:
            loss = step(turn, parts)
        flops = flops or counter.get_total_flops()
        return {"loss": loss, "parts": parts.seconds, "flops": flops, "masked": masked}

    return run


def noised(shape: Shape) -> list[Sample]:
    """The shape's rows, with the same noise at every turn: how many tokens are masked sets a step's time."""
    return [Sample(row, (0, n)) for n, row in enumerate(workload.rows(shape))]


def builder(shape: Shape, compdemo: bool) -> BatchBuilder:
    """What makes the shape's micro-batches."""
    return BatchBuilder(
        InputLayout(shape.student.mask_token_id, SequenceBlocks(shape.block_size)),
        (TeacherLayout(shape.teacher.mask_token_id, OneBlock(), shape.shared_vocabulary),),
        compdemo_ratio=0.5 if compdemo else None,
    )


def naive(shape: Shape, strategy: str, compdemo: bool) -> Callable[[int], float]:
    """The same step written plainly: turn -> loss."""
    student, teacher = workload.model(shape.student), workload.teacher(shape.teacher)
    step = NaiveStep(student, teacher, block_size=shape.block_size, tidal=strategy == "tidal", compdemo=compdemo)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0)
    samples = noised(shape)

    def run(turn: int) -> float:
        loss = step.loss(samples, turn / 100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


def compare(name: str, options: Namespace, shape: Shape) -> tuple[dict, dict]:
    """One row of either table: the whole step, and its parts."""
    strategy, compdemo, cpu_seconds, seconds, gigabytes = CASES[name]
    shape = shape.but(shared_tokenizer=strategy == "tidal")
    contestants = {"ours": partial(ours, shape, strategy, compdemo, options.engine, options.real)}
    if not options.real:
        contestants["naive"] = partial(naive, shape, strategy, compdemo)
    taken = measure.take_turns(contestants, options)
    mine = taken["ours"]
    first = mine.results[0]
    row = {"step": name, "masked": first["masked"]}
    row |= {"s": mine.seconds, "CPU s": mine.cpu_seconds, "peak GB": mine.peak_gb}
    parts = {part: statistics.mean(result["parts"][part] for result in mine.results) for part in first["parts"]}
    rate = first["flops"] / mine.seconds / 1e12
    parts = {"step": name, **parts, "TFLOP": first["flops"] / 1e12, "TFLOP/s": rate}
    if options.real:
        return row, parts | {"MFU": rate / options.peak_tflops}
    plain = taken["naive"]
    for a, b in zip([result["loss"] for result in mine.results], plain.results, strict=True):
        if not math.isclose(a, b, rel_tol=1e-3):
            raise SystemExit(f"{name}: losses differ, {a} and {b}")
    row |= {
        "naive s": plain.seconds,
        "naive CPU s": plain.cpu_seconds,
        "naive peak GB": plain.peak_gb,
        "naive/ours time": plain.seconds / mine.seconds,
        "published CPU s": cpu_seconds,
        "published s": seconds,
        "published peak GB": gigabytes,
    }
    return row, parts


def compdemo_price(options: Namespace, shape: Shape) -> float:
    """CompDemo's step over the same step without it, taking turns."""
    contestants = {
        name: partial(ours, shape, "reverse_calm", compdemo, options.engine, options.real)
        for name, compdemo in (("without", False), ("with", True))
    }
    taken = measure.take_turns(contestants, options, more=3)
    return taken["with"].seconds / taken["without"].seconds


def main(argv: list[str] | None = None) -> None:
    p = measure.arguments(__doc__)
    p.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), help="steps to measure")
    p.add_argument("--engine", default="", help="file of ds_configs/ (default zero3, with --real zero3_bf16)")
    p.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, for MFU (default: H100 SXM, bfloat16)")
    p.add_argument("--real", action="store_true", help="the published models' shapes, on a GPU")
    options = p.parse_args(argv)
    options.engine = options.engine or ("zero3_bf16" if options.real else "zero3")
    shape = QUICK if options.quick else REAL if options.real else SMALL
    rows, parts = zip(*(compare(name, options, shape) for name in options.cases), strict=True)
    targets = [measure.at_most("CompDemo's price", compdemo_price(options, shape), 1.35, "x")]
    if not options.real:
        for row in rows:
            case, quarter = row["step"], row["published CPU s"] / 4
            targets += [
                measure.at_most(f"{case}: a quarter of the published CPU time", row["CPU s"], quarter, " s"),
                measure.at_least(f"{case}: naive/ours time", row["naive/ours time"], 4, "x"),
                measure.at_most(f"{case}: peak memory", row["peak GB"], 2.5, " GB"),
            ]
            if row["published s"]:
                quarter = row["published s"] / 4
                targets.append(measure.at_most(f"{case}: a quarter of the published time", row["s"], quarter, " s"))
    measure.report(
        "step",
        options,
        {"step": rows, "step: parts of ours": parts},
        targets,
        {"engine": options.engine, "real": options.real},
    )


if __name__ == "__main__":
    sys.exit(exit_code("benchmark", main))

"""Memory that `plan` predicts against memory that real training steps take: `python -m benchmarks.plan_memory [CASE ...]`.

Every case trains a few steps in fresh processes on the CPU (gloo, ZeRO-3, float32) and samples their private memory, above
what a step of tiny models takes in the same process (libraries, threads). glibc is told to map every larger block by itself, so that freed memory is given back at once and
what is measured is what is alive. Prints predicted and measured GB of a rank, and their ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tests import launch

if TYPE_CHECKING:
    from pipeline.distributed.topology import Topology

ROWS, LENGTH = 24, 192
# Buckets of their usual size would be most of such small models, and on the CPU memory that is never touched.
ENGINE = {
    "zero_optimization": {
        "stage": 3,
        "contiguous_gradients": True,
        "reduce_bucket_size": 1_000_000,
        "stage3_prefetch_bucket_size": 1_000_000,
    },
    "steps_per_print": 1_000_000_000,
}
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Case:
    """One run; `words` go to its command line."""

    ranks: int
    student: dict = field(default_factory=dict)
    teacher: dict = field(default_factory=dict)
    words: tuple[str, ...] = ()


LARGE = {
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "head_dim": 48,
}
WIDE = {"vocab_size": 65536}
EXPERTS = {"moe_intermediate_size": 512, "num_experts": 32, "num_experts_per_tok": 4}
CASES = {
    "small": Case(2, words=("--optim.micro_tokens", "4608")),
    "large-student": Case(2, LARGE, words=("--optim.micro_tokens", "2304")),
    "large-vocabulary": Case(2, WIDE, WIDE, ("--optim.micro_tokens", "2304")),
    "checkpointing": Case(
        2, LARGE, words=("--optim.micro_tokens", "4608", "--student.activation_checkpointing", "true")
    ),
    "ep-1": Case(1, {}, EXPERTS, ("--optim.micro_tokens", "2304")),
    "ep-2": Case(2, {}, EXPERTS, ("--optim.micro_tokens", "2304")),
    "compdemo": Case(2, {}, EXPERTS, ("--optim.micro_tokens", "4608", "--objective.strategy", "tide_shared")),
}


def prepare(folder: Path, case: Case) -> list[str]:
    """Models, rows as long as the recipe allows, and their aligned dataset; returns the recipe's command line."""
    for name, changes in (("student", case.student), ("teacher", case.teacher)):
        config = json.loads((launch.ROOT / "demo" / name / "config.json").read_text())
        (folder / name).mkdir(exist_ok=True)
        sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5, "vocab_size": 16384}
        (folder / name / "config.json").write_text(json.dumps(config | sizes | changes))
    talk = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two three four five " * 60}]
    (folder / "rows.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * ROWS)
    (folder / "engine.json").write_text(json.dumps(ENGINE))
    words = ["--name", "plan_memory", "--data.sources", f"[{{path: {folder}/rows.jsonl, name: rows}}]"]
    words += ["--data.aligned", f"{folder}/aligned", "--data.student_length", str(LENGTH), "--data.validation", "null"]
    words += [
        "--student.path",
        f"{folder}/student",
        "--student.tokenizer",
        "demo/student",
        "--student.weights",
        "random",
    ]
    words += ["--teachers.path", f"{folder}/teacher", "--teachers.tokenizer", "demo/teacher"]
    words += ["--teachers.weights", "random", "--teachers.length", str(LENGTH), "--optim.global_batch", str(ROWS)]
    words += ["--student.block_size", "16", "--run_dir", f"{folder}/run", *case.words]
    launch.python("pipeline/align.py", *words, "--processes", "1")
    return words


def predicted(folder: Path, case: Case, words: list[str]) -> float:
    """GB of a rank, as `plan` says."""
    flags = ["--nodes", "1", "--gpus-per-node", str(case.ranks), "--gpu-memory", "1000", "--device", "cpu", "--json"]
    done = launch.python("pipeline/plan.py", *words, *flags, "--deepspeed", folder / "engine.json")
    return json.loads(done.stdout)[0]["total_gb"]


def measured(folder: Path, case: Case, words: list[str]) -> float:
    """GB of the rank that takes most, in fresh processes."""
    launch.deepspeed(
        case.ranks, "--module", "benchmarks.plan_memory", "--worker", folder, *words, timeout=900, **MAPPED
    )
    return max(json.loads(file.read_text()) for file in folder.glob("rank-*.json")) / 1e9


def work(folder: Path, words: list[str]) -> None:
    """One rank: writes the most memory that a few steps took, above that of a process which trained tiny models."""
    from pipeline.distributed.topology import start

    topology = start(timedelta(minutes=10))
    tiny = ["--student.path", "demo/student", "--teachers.path", "demo/teacher"]
    train(folder, [*words, *tiny], topology, steps=1)  # libraries that are loaded late, threads, buffers of gloo
    gc.collect()
    baseline = private_memory()
    peak = train(folder, words, topology, steps=3)
    (folder / f"rank-{topology.rank}.json").write_text(json.dumps(peak - baseline))


def train(folder: Path, words: list[str], topology: Topology, steps: int) -> int:
    """The highest private memory during the steps; loading is left out."""
    from pipeline.config.cli import parse, parser
    from pipeline.training.build import build_trainer
    from pipeline.training.loop import Requests
    from pipeline.training.metrics import Metrics
    from pipeline.training.preflight import prepare as check

    recipe, _ = parse(parser(__doc__), words)
    trainer = build_trainer(check(recipe, folder / "engine.json"), topology)
    metrics = Metrics(folder / "metrics.jsonl", ["cross_entropy", "teacher"], first=0, steps=9, device=topology.device)
    with sampled() as peak:
        for step in range(steps):
            micro_batches = trainer.micro_batches(step)
            denominators, _ = trainer.agree(micro_batches, Requests())
            trainer.train_step(step, micro_batches, denominators, metrics)
    return peak[0]


def private_memory() -> int:
    """Bytes of memory that no other process and no file shares."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGESIZE")


@contextmanager
def sampled():
    """The highest `private_memory` inside the block, read every two milliseconds."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            peak[0] = max(peak[0], private_memory())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def compare(name: str) -> tuple[float, float]:
    """Predicted and measured GB of a case."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, case = Path(scratch), CASES[name]
        words = prepare(folder, case)
        return predicted(folder, case, words), measured(folder, case, words)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    table = Table("case", "predicted GB", "measured GB", "ratio")
    for name in p.parse_args().cases or CASES:
        plan, real = compare(name)
        table.add_row(name, f"{plan:.3f}", f"{real:.3f}", f"{plan / real:.2f}")
    Console().print(table)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        first = sys.argv.index("--worker") + 1
        work(Path(sys.argv[first]), sys.argv[first + 1 :])
    else:
        main()

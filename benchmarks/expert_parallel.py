"""Memory and time of a frozen MoE teacher's forward on 4 ranks, its experts shared out over 1, 2 and 4 of them.

`python benchmarks/expert_parallel.py`: hidden 256, 64 experts of width 256, 4 layers, a small vocabulary, so that
experts are most of the weights. Every rank reads its own 4 rows of 512 tokens. On a CPU the ranks share the cores and
exchange tokens through gloo: the times show the price of the exchange, not what a node of GPUs would gain.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from benchmarks import measure, workload
from pipeline.core.errors import exit_code
from pipeline.distributed.topology import start
from pipeline.models.loading import load_teacher

MARK = "measured: "


def forward(teacher: nn.Module, rows: int, length: int, device: torch.device) -> Callable[[int], float]:
    """One forward of this rank's rows; the norm of what comes out."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    ids = torch.randint(teacher.config.vocab_size, (rows, length), generator=generator).to(device)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)

    @torch.no_grad()
    def run(_turn: int) -> float:
        dist.barrier()
        hidden = teacher.model(ids, attention_mask=mask).last_hidden_state
        dist.barrier()
        return float(hidden.norm())

    return run


def rank_main(folder: str, size: int, turns: int, rows: int, length: int) -> None:
    """A rank's part; rank 0 prints the medians over turns, time of the slowest rank, memory of the largest."""
    device = start(timedelta(minutes=10)).device
    teacher = load_teacher(folder, dtype=torch.float32, device=device, expert_parallel_size=size, weights="random")
    run = forward(teacher, rows, length, device)
    run(0)
    measured = [measure.measure(run, turn) for turn in range(turns)]
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [(t.seconds, t.peak_bytes / 1e9, t.result) for t in measured])
    if dist.get_rank() == 0:
        seconds = sorted(max(rank[t][0] for rank in gathered) for t in range(turns))[turns // 2]
        peak = max(turn[1] for rank in gathered for turn in rank)
        weights = sum(p.numel() * p.element_size() for p in teacher.parameters()) / 1e9
        print(MARK + json.dumps([seconds, weights, peak, gathered[0][0][2]]), flush=True)
    dist.barrier()


def launch(ranks: int, *words: object) -> list[float]:
    """Seconds, GB of weights, peak GB and norm that rank 0 prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "benchmarks.expert_parallel", "--rank", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=measure.ROOT, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(done.stdout.split(MARK)[1].splitlines()[0])


def main(argv: list[str] | None = None) -> None:
    options = measure.arguments(__doc__, turns=5, threads=1).parse_args(argv)
    ranks, sizes, shape = (2, [2], (2, 16)) if options.quick else (4, [1, 2, 4], (4, 512))
    sizes_of = {"vocabulary": 512, "hidden": 64, "layers": 2} if options.quick else {"vocabulary": 8192}
    config = workload.llada2(experts=16 if options.quick else 64, moe_intermediate_size=256, **sizes_of)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        for size in sizes:
            measured = launch(ranks, folder, size, options.turns, *shape)
            names = ("s", "weights GB per rank", "peak GB per rank", "norm")
            rows.append({"expert parallelism": size, "ranks": ranks, **dict(zip(names, measured, strict=True))})
    if any(abs(row["norm"] / rows[0]["norm"] - 1) > 1e-5 for row in rows):
        raise SystemExit(f"outputs differ with the size: {[row['norm'] for row in rows]}")
    measure.report("expert_parallel", options, {"expert_parallel": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank_main(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        sys.exit(exit_code("benchmark", main))

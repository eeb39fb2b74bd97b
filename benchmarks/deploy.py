"""What distillation is for: memory, latency and tokens per second of the student against both teachers, 256 tokens each.

`python benchmarks/deploy.py` on a CPU: all three models at an eighth of their width and a quarter of their depth, with
real vocabularies, float32. `--real`: the published shapes with random weights in bfloat16, on a GPU of 40 GB or more.
The bytes of the real shapes' weights are computed, without memory. Paper, on an H100: 1.4 against 31.3 GB, 6.25 against
32.55 s.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedConfig

from benchmarks import measure, workload
from pipeline.core.errors import exit_code
from pipeline.decoding.sampler import GenerateConfig, generate
from pipeline.models.loading import build

# an eighth of the width, a quarter of the depth; half as many experts a group, so that width and experts keep their ratio
SCALED = {
    "student": workload.qwen3(hidden=128, layers=7),
    "llada2": workload.llada2(hidden=256, layers=5, experts=64, num_experts_per_tok=8, n_group=8, topk_group=4),
    "wedlm": workload.qwen3(hidden=512, layers=9, tie_word_embeddings=False),
}
QUICK = {"student": workload.qwen3(600, 64, 2), "llada2": workload.llada2(700, 64, 2)}
NAMES = {
    "student": "student: Qwen3-0.6B's shape",
    "llada2": "teacher: LLaDA2.0-mini's shape",
    "wedlm": "teacher: WeDLM-8B's shape",
}


def serving(config: PreTrainedConfig, tokens: int, block: int, device: str, dtype: torch.dtype) -> Callable[[int], int]:
    """Answers one prompt of 64 tokens, one token per forward; the first turn stops after a block."""
    model = workload.teacher(config, device=device, dtype=dtype)
    prompt = torch.randint(config.vocab_size - 400, (64,), generator=torch.Generator().manual_seed(0)).tolist()

    def run(turn: int) -> int:
        length = tokens if turn else block
        return len(generate(model, [prompt], GenerateConfig(length, block, length))[0])

    return run


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of a model's parameters, tied ones once."""
    return sum(p.numel() * dtype.itemsize for p in build(config, dtype=dtype, device="meta").parameters())


def main(argv: list[str] | None = None) -> None:
    p = measure.arguments(__doc__, turns=1)
    p.add_argument("--real", action="store_true", help="the published models' shapes, on a GPU")
    options = p.parse_args(argv)
    device, dtype = ("cuda", torch.bfloat16) if options.real else ("cpu", torch.float32)
    configs, tokens, block = (QUICK, 16, 8) if options.quick else (workload.REAL if options.real else SCALED, 256, 32)
    rows = []
    for name, config in configs.items():  # one after the other: each alone on the machine
        taken = measure.take_turns({name: partial(serving, config, tokens, block, device, dtype)}, options)[name]
        rows.append(
            {
                "model": NAMES[name],
                "weights GB": weight_bytes(config, dtype) / 1e9,
                "peak GB": taken.peak_gb,
                "latency s": taken.seconds,
                "tokens/s": taken.results[0] / taken.seconds,
                "real weights GB, bfloat16": weight_bytes(workload.REAL[name], torch.bfloat16) / 1e9,
            }
        )
    student = rows[0]
    for row in rows:
        row["latency/student's"] = row["latency s"] / student["latency s"]
        row["peak/student's"] = row["peak GB"] / student["peak GB"]
    measure.report("deploy", options, {"deploy": rows}, settings={"tokens": tokens, "real": options.real})


if __name__ == "__main__":
    sys.exit(exit_code("benchmark", main))

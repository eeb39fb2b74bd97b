"""The block-diffusion sampler beside a plain one: tokens per second at equal tokens, and the fast preset on the demo.

`python benchmarks/sample.py`: 256 new tokens in blocks of 32, one token per forward, hidden 256, 6 layers, Qwen3's
vocabulary, prompts of 43 to 64 tokens, batch 1 and 8; batch 1 also at 64 and 512 tokens: the gap should grow with length.
The demo's problems are solved by `runs/demo` where it was run, else by the demo's teacher.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import re
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import measure, workload
from benchmarks.naive import sampler as naive
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import exit_code
from pipeline.core.files import read_json_lines
from pipeline.decoding.sampler import GenerateConfig, generate
from pipeline.models.loading import load_teacher
from pipeline.models.tokenizer import load_tokenizer

SAMPLERS = {"ours": generate, "naive": naive.generate}
PROBLEMS = Path("demo/data/test.jsonl")
# published sampler, 256 tokens, 2 cores: the better of its tokens/s, by batch
PUBLISHED = {1: 14, 8: 20}


def decoding(sampler: str, shape: tuple, batch: int, config: GenerateConfig) -> Callable[[int], list[list[int]]]:
    """Decodes prompts of 43 to 64 random tokens; the first turn stops after a block."""
    model = workload.model(workload.qwen3(*shape, initializer_range=0.1)).eval()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(43, 64, batch + 1).long().tolist()[1:]
    prompts = [torch.randint(model.config.vocab_size - 400, (n,), generator=generator).tolist() for n in lengths]
    first = GenerateConfig(config.block_size, config.block_size, config.block_size)
    return lambda turn: SAMPLERS[sampler](model, prompts, config if turn else first)


def compare(options: Namespace, shape: tuple, batch: int, tokens: int, block: int) -> dict:
    """One row of the table: the same tokens by both samplers."""
    config = GenerateConfig(tokens, block, tokens)
    taken = measure.take_turns({name: partial(decoding, name, shape, batch, config) for name in SAMPLERS}, options)
    ours, plain = taken["ours"], taken["naive"]
    if ours.results[0] != plain.results[0]:
        raise SystemExit(f"{tokens} tokens at batch {batch}: the samplers' tokens differ")
    rate = {name: batch * tokens / turns.seconds for name, turns in taken.items()}
    return {
        "tokens": tokens,
        "batch": batch,
        "ours tokens/s": rate["ours"],
        "naive tokens/s": rate["naive"],
        "published tokens/s": PUBLISHED[batch] if tokens == 256 else "",
        "naive/ours time": plain.seconds / ours.seconds,
        "naive/ours CPU": plain.cpu_seconds / ours.cpu_seconds,
    }


def solving(
    sampler: str, path: str, config: GenerateConfig, problems: int, batch: int
) -> Callable[[int], tuple[float, float]]:
    """Solves the demo's problems: the share that is right, and forwards a batch."""
    model, tokenizer = load_teacher(path, dtype=torch.float32, device="cpu"), load_tokenizer(path)
    rows = read_json_lines(PROBLEMS)[:problems]
    texts = [
        tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True) for row in rows
    ]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    model.register_forward_hook(count)

    def run(_turn: int) -> tuple[float, float]:
        nonlocal forwards
        forwards, starts = 0, range(0, len(prompts), batch)
        answers = [a for s in starts for a in SAMPLERS[sampler](model, prompts[s : s + batch], config)]
        integers = [re.findall(r"\d+", tokenizer.decode(answer)) for answer in answers]
        right = sum(bool(n) and n[-1] == row["answer"] for n, row in zip(integers, rows, strict=True))
        return right / len(rows), forwards / len(starts)

    return run


def demo(options: Namespace, path: str, batch: int) -> list[dict]:
    """The demo's problems: the plain sampler, ours with the same schedule, and ours with the fast preset's threshold."""
    problems = 4 if options.quick else 100
    schedule = GenerateConfig(24, 8, 24)
    contestants = {
        "naive": ("naive", schedule),
        "ours": ("ours", schedule),
        "ours, fast preset": ("ours", GenerateConfig(24, 8, 24, threshold=0.9)),
    }
    turns = measure.take_turns(
        {name: partial(solving, s, path, config, problems, batch) for name, (s, config) in contestants.items()}, options
    )
    return [
        {
            "demo": name,
            "batch": batch,
            "exact match": side.results[0][0],
            "forwards a batch": side.results[0][1],
            "problems/s": problems / side.seconds,
            "naive/this time": turns["naive"].seconds / side.seconds,
        }
        for name, side in turns.items()
    ]


def main(argv: list[str] | None = None) -> None:
    options = measure.arguments(__doc__, turns=2).parse_args(argv)
    if options.quick:
        rows = [compare(options, (600, 64, 2), 2, 16, 8)]
    else:
        cases = [(1, 64), (1, 256), (1, 512), (8, 256)]
        rows = [compare(options, (151936, 256, 6), batch, tokens, 32) for batch, tokens in cases]
    targets = []
    for row in rows:
        if row["tokens"] == 256:
            case, twice = f"256 tokens at batch {row['batch']}", 2 * row["published tokens/s"]
            targets.append(
                measure.at_least(f"{case}: twice the published rate", row["ours tokens/s"], twice, " tokens/s")
            )
            targets.append(measure.at_least(f"{case}: naive/ours time", row["naive/ours time"], 2))
    gaps = {row["tokens"]: row["naive/ours time"] for row in rows if row["batch"] == 1}
    if gaps:
        targets.append(measure.at_least("batch 1: the gap at 512 tokens over that at 64", gaps[512] / gaps[64], 1))
    checkpoints = complete_checkpoints(Path("runs/demo"))
    path, solved = str(checkpoints[-1] / "export") if checkpoints else "demo/teacher", []
    for batch in (2,) if options.quick else (1, 8):
        plain, _, fast = rows_of_batch = demo(options, path, batch)
        solved += rows_of_batch
        case, lost = f"fast preset on the demo at batch {batch}", plain["exact match"] - fast["exact match"]
        targets.append(measure.at_least(f"{case}: naive/ours time", fast["naive/this time"], 5))
        targets.append(measure.at_most(f"{case}: exact match lost", lost, 0))
    tables = {"sample": rows, "sample: demo": solved}
    measure.report("sample", options, tables, targets, {"model of the demo's problems": path})


if __name__ == "__main__":
    sys.exit(exit_code("benchmark", main))

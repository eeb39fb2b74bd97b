"""What a rank reads and holds while a mixture of experts is loaded: `python benchmarks/loading.py`.

Writes a LLaDA2 checkpoint with published names (random bfloat16 weights, several shards), loads it on all ranks at each
expert-parallel size, and compares with arithmetic: dense tensors and 1 / size of the experts, in bytes. Read are the bytes
that the kernel counts for the process (/proc/self/io); the peak is resident memory above what it was after imports.
The peak holds one tensor of the files beside the loaded ones, the largest of which is the embedding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from math import prod
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TOLERANCE = 0.15
# Shapes of LLaDA2.0-mini with narrower layers: 2.2 GB, of which 92% are experts
CONFIG = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "hidden_size": 1024,
    "head_dim": 64,
    "intermediate_size": 2560,
    "moe_intermediate_size": 512,
    "num_experts": 64,
    "num_hidden_layers": 11,
    "vocab_size": 16384,
    "max_position_embeddings": 4096,
    "mask_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass
class Load:
    """One rank's load, in bytes and seconds."""

    size: int
    rank: int
    read: int
    peak: int
    seconds: float


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint."""
    import torch

    from pipeline.models.families.llada2_moe import LLaDA2MoeConfig
    from pipeline.models.loading import build
    from pipeline.models.weights import checkpoint_views, shapes

    config = LLaDA2MoeConfig(**{k: v for k, v in CONFIG.items() if k not in ("model_type", "architectures")})
    return shapes(checkpoint_views(build(config, dtype=torch.bfloat16, device="meta")))


def size_of(name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor: bfloat16, the selection bias float32."""
    return prod(shape) * (4 if name.endswith("expert_bias") else 2)


def in_shards(shapes: dict[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
    """Names in order, in parts of up to `limit` bytes."""
    part, filled = [], 0
    for name, shape in shapes.items():
        if part and filled + size_of(name, shape) > limit:
            yield part
            part, filled = [], 0
        part.append(name)
        filled += size_of(name, shape)
    yield part


def write_checkpoint(folder: Path, shard_bytes: int) -> None:
    """Random weights, one shard in memory at a time."""
    import torch
    from safetensors.torch import save_file

    shapes = expected_shapes()
    parts = list(in_shards(shapes, shard_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        tensors = {n: torch.randn(shapes[n]) * 0.02 for n in part if n.endswith("expert_bias")}
        tensors |= {n: torch.empty(shapes[n], dtype=torch.bfloat16).normal_(std=0.02) for n in part if n not in tensors}
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


def predicted(size: int) -> int:
    """Bytes that one rank reads and holds: everything but the experts of others."""
    shapes = expected_shapes().items()
    return sum(size_of(n, s) // (size if ".experts." in n else 1) for n, s in shapes)


def proc(file: str, field: str) -> int:
    """A number of /proc/self; memory is given in kB there."""
    line = next(x for x in Path(f"/proc/self/{file}").read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1])


def worker(folder: str, size: int, into: Path) -> None:
    """One rank: loads once, and writes what that took."""
    import torch
    import torch.distributed as dist
    from deepspeed.module_inject.auto_ep import AutoEP  # noqa: F401  what loading imports counts as before

    from pipeline.distributed.topology import start
    from pipeline.models.loading import load_teacher

    start(timedelta(minutes=10))
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    resident, read, started = proc("status", "VmRSS"), proc("io", "rchar"), time.perf_counter()
    model = load_teacher(folder, dtype=torch.bfloat16, device="cpu", expert_parallel_size=size)
    seconds = time.perf_counter() - started
    load = Load(
        size=size,
        rank=dist.get_rank(),
        read=proc("io", "rchar") - read,
        peak=1024 * (proc("status", "VmHWM") - resident),
        seconds=round(seconds, 2),
    )
    (into / f"{size}-{load.rank}.json").write_text(json.dumps(asdict(load)))
    dist.barrier()
    del model


def measure(folder: str, size: int, ranks: int) -> list[Load]:
    """Loads on all ranks at one expert-parallel size, in fresh processes."""
    with tempfile.TemporaryDirectory() as into:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        words = [str(Path(__file__)), "--worker", into, "--folder", folder, "--sizes", str(size)]
        environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} | os.environ
        subprocess.run([*command, *words], env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return [Load(**json.loads(file.read_text())) for file in sorted(Path(into).iterdir())]


def main() -> None:
    """Measures, prints a table and one line of JSON, and fails where arithmetic is missed by more than the tolerance."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", default="", help="keep the checkpoint here and use it again (default: a temporary one)")
    p.add_argument("--ranks", type=int, default=4, help="processes on this machine")
    p.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], help="expert-parallel sizes")
    p.add_argument("--shard-mib", type=int, default=512, help="size of a file of the checkpoint")
    p.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.worker:
        return worker(options.folder, options.sizes[0], options.worker)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        if not (folder / "config.json").is_file():
            write_checkpoint(folder, options.shard_mib * 2**20)
        loads = [load for size in options.sizes for load in measure(str(folder), size, options.ranks)]
    print(f"{'EP':>3} {'rank':>4} {'predicted GB':>13} {'read GB':>8} {'':>6} {'peak GB':>8} {'':>6} {'seconds':>8}")
    worst = 0.0
    for x in loads:
        wanted = predicted(x.size)
        read, peak = x.read / wanted, x.peak / wanted
        worst = max(worst, abs(read - 1), abs(peak - 1))
        print(
            f"{x.size:>3} {x.rank:>4} {wanted / 1e9:>13.3f} {x.read / 1e9:>8.3f} {read:>6.1%} {x.peak / 1e9:>8.3f}"
            f" {peak:>6.1%} {x.seconds:>8.1f}"
        )
    print(json.dumps({"predicted": {s: predicted(s) for s in options.sizes}, "loads": [asdict(x) for x in loads]}))
    if worst > TOLERANCE:
        sys.exit(f"off by {worst:.1%}, more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()

"""Trains for long while evaluation watches, and looks whether anything grows: memory, open files, threads, shared memory, files.

    python tests/drills/long_life.py --steps 2000

Two ranks save every 20 steps, and a watcher scores the checkpoints. Every second each process is looked at; after the first
quarter a line is fitted to each quantity over the steps, and its slope must stay below the bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import linear_regression

import psutil
import yaml

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests import launch, tiny

SAVE_EVERY, WARM_UP = 20, 0.25
"""Steps between two saves; share of the run before slopes are taken."""
BOUNDS = {"resident MB": 20.0, "open files": 2.0, "threads": 2.0, "shared memory MB": 2.0, "temporary files": 2.0}
"""The most that a quantity may grow in 1,000 steps, which are 50 checkpoints."""

Samples = dict[tuple[str, str], list[tuple[int, float]]]
"""(process, quantity) -> (step, value)"""


def drill(folder: Path, steps: int) -> dict[tuple[str, str], float]:
    """Slopes in 1,000 steps, by process and quantity. Raises AssertionError where a process fails or one is too steep."""
    recipe, scratch, run_dir = make(folder, steps), folder / "temporary", folder / "run"
    scratch.mkdir()
    watch = ["pipeline/evaluate.py", "--watch", run_dir, "--recipe", recipe, "--every", 1]
    train = ["pipeline/distill.py", "--recipe", recipe, "--run_dir", run_dir]
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(launch.free_port()),
    }
    places = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    running: dict[str, subprocess.Popen] = {}
    samples: Samples = defaultdict(list)
    try:
        for name, words, place in (("rank 0", train, places[0]), ("rank 1", train, places[1]), ("watcher", watch, {})):
            environment = launch.ENVIRONMENT | place | {"TMPDIR": str(scratch)}
            with (folder / f"{name}.log").open("w") as log:
                running[name] = launch.popen(sys.executable, *words, env=environment, stdout=log, stderr=log)
        while (step := last_step(run_dir)) < steps - SAVE_EVERY:
            assert all(process.poll() is None for process in running.values()), logs(folder)
            look({name: process.pid for name, process in running.items()}, step, scratch, samples)
            time.sleep(1)
        assert [process.wait(600) for process in running.values()] == [0, 0, 0], logs(folder)
    finally:
        for process in running.values():
            process.kill()
    slopes = {key: slope(line) for key, line in samples.items()}
    steep = {key: slope for key, slope in slopes.items() if slope > BOUNDS[key[1]]}
    assert not steep, steep
    return slopes


def make(folder: Path, steps: int) -> Path:
    """A recipe of that many steps, with one task of four sums."""
    rows = [{"messages": [{"role": "user", "content": f"{n} plus 1?"}], "answer": str(n + 1)} for n in range(4)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shipped = str(launch.ROOT / "pipeline/evaluation/tasks/demo_arithmetic.yaml")
    task = {"include": shipped, "task": "sums", "dataset_kwargs": {"path": str(folder / "sums.jsonl")}}
    (folder / "sums.yaml").write_text(yaml.safe_dump(task))
    return tiny.make(
        folder,
        optim={"steps": steps, "lr": 0.003, "global_batch": 6, "micro_tokens": 1200},
        checkpoint={"every_steps": SAVE_EVERY, "keep": 2},
        logging={"every_steps": 10, "validate_every": 100},
        evaluation={"tasks": [str(folder / "sums.yaml")], "preset": "smoke"},
    )


def last_step(run_dir: Path) -> int:
    return max((line["step"] for line in tiny.lines(run_dir)), default=0)


def logs(folder: Path) -> str:
    return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in folder.glob("*.log"))


def look(pids: dict[str, int], step: int, scratch: Path, samples: Samples) -> None:
    """Adds what processes and machine hold at this step; other programs' shared memory counts too."""
    for name, pid in pids.items():
        process = psutil.Process(pid)
        samples[name, "resident MB"].append((step, process.memory_info().rss / 1e6))
        samples[name, "open files"].append((step, process.num_fds()))
        samples[name, "threads"].append((step, process.num_threads()))
    samples["machine", "shared memory MB"].append((step, psutil.disk_usage("/dev/shm").used / 1e6))
    samples["machine", "temporary files"].append((step, sum(1 for _ in scratch.rglob("*"))))


def slope(line: list[tuple[int, float]]) -> float:
    """In 1,000 steps, after the warm-up."""
    late = [(step, value) for step, value in line if step > WARM_UP * line[-1][0]]
    return 1000 * linear_regression(*zip(*late, strict=True)).slope


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=2000)
    given = p.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for (process, quantity), growth in drill(Path(place), given.steps).items():
            print(f"{process:9} {quantity:17} {growth:+8.3f} in 1,000 steps")

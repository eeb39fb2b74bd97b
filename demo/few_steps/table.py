"""What demo/few_steps/run.sh measured, over seeds: `python -m demo.few_steps.table` prints the tables of docs/evidence.md.

Tokens per forward at equal exact match: of a student's thresholds, the most tokens per forward that lose at most one point
against the undistilled student of the same seed at one token per forward; 0 where every threshold loses more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput, exit_code
from pipeline.evaluation.sweep import SweepPoint, read_sweep

RUNS = Path("runs/few-steps")
VARIANTS = {"0": "undistilled", "2": "with certainty forcing"}
"""Folder, which is the weight -> name."""
TASK, LOSS = "demo_arithmetic", 0.01


def points(run: Path) -> list[SweepPoint]:
    """Of a run's newest checkpoint, from the highest threshold down."""
    saved = complete_checkpoints(run)
    return read_sweep(run / "evaluation" / saved[-1].name, TASK) if saved else []


def tokens_per_forward(swept: Sequence[SweepPoint], least: float) -> float:
    """The most that a score of at least `least` allows; 0 where none has it."""
    return max((p.tokens_per_forward for p in swept if p.score.value >= least), default=0.0)


def main() -> None:
    """Prints both tables."""
    seeds = sorted(run.name for run in (RUNS / "2").glob("*"))
    sweeps = {name: [points(RUNS / folder / seed) for seed in seeds] for folder, name in VARIANTS.items()}
    whole = max((len(swept_points) for swept_points in sweeps["undistilled"]), default=0)
    done = [i for i in range(len(seeds)) if whole and all(len(runs[i]) == whole for runs in sweeps.values())]
    if not done:
        raise BadInput("nothing is measured: run demo/few_steps/run.sh")
    swept, seeds = {name: [runs[i] for i in done] for name, runs in sweeps.items()}, [seeds[i] for i in done]
    least = [swept_points[0].score.value - LOSS for swept_points in swept["undistilled"]]
    print("| student | threshold | exact match | tokens per forward |\n|---|---|---:|---:|")
    for name, runs in swept.items():
        for of_setting in zip(*runs, strict=True):
            score = np.mean([point.score.value for point in of_setting])
            pace = np.mean([point.tokens_per_forward for point in of_setting])
            print(f"| {name} | {of_setting[0].setting.split()[-1]} | {score:.3f} | {pace:.2f} |")
    reached = {
        name: [tokens_per_forward(*pair) for pair in zip(runs, least, strict=True)] for name, runs in swept.items()
    }
    print(f"\n| student | tokens per forward at equal exact match, seeds {', '.join(seeds)} | mean |\n|---|---|---:|")
    for name, values in reached.items():
        print(f"| {name} | {', '.join(f'{value:.2f}' for value in values)} | {np.mean(values):.2f} |")


if __name__ == "__main__":
    sys.exit(exit_code("table", main))

"""Kills a real run again and again, resumes it each time, and compares its end with that of an uninterrupted one.

    python tests/drills/kill_anywhere.py --kills 30 --seed 0

Each time SIGKILL hits a rank, the launcher or all processes at once (a lost node), at a random instant: while models load, after
a random step, or while a checkpoint is written. The end must be equal to the last bit: parameters, moments, every line of
metrics.jsonl. No process may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pipeline.core.checkpoint_files import saved_step
from pipeline.core.run_directory import read_metrics
from tests import launch, tiny

RANKS, STEPS_A_KILL, GRACE = 2, 12, 120.0
"""Ranks; steps between two kills, about; seconds that the rest of a run may live on."""


@dataclass
class Kill:
    """What was hit, when, and what it cost."""

    victim: str
    moment: str
    step: int
    lost: int
    """steps that are taken again"""
    left_half_written: bool
    seconds: float
    """until the last process had ended"""


def drill(folder: Path, kills: int, seed: int) -> list[Kill]:
    """Raises AssertionError where the killed run is not the uninterrupted one, or leaves a process behind."""
    often = {"every_steps": 3, "keep": 2, "every_minutes": 30}
    optim = {"steps": STEPS_A_KILL * (kills + 1), "lr": 0.003, "global_batch": 6, "micro_tokens": 1200}
    recipe = tiny.make(folder, rows=80, optim=optim, checkpoint=often, logging={"every_steps": 1, "validate_every": 50})
    chance, run_dir, done = random.Random(seed), folder / "killed", []
    while len(done) < kills:
        kill = killed(recipe, run_dir, chance, STEPS_A_KILL * (len(done) + 1))
        done.append(kill)
        print(f"{len(done):3} {kill}", flush=True)
    for name in ("killed", "whole"):
        assert start(recipe, folder / name).wait(3600) == 0, (folder / f"{name}.log").read_text()[-3000:]
    tiny.assert_same(run_dir, folder / "whole")
    return done


def start(recipe: Path, run_dir: Path) -> subprocess.Popen:
    """The run as a user starts it; output goes to RUN_DIR.log."""
    words = [*launch.launcher(RANKS), "pipeline/distill.py", "--recipe", recipe, "--run_dir", run_dir]
    with run_dir.with_name(f"{run_dir.name}.log").open("a") as output:
        return launch.popen(*words, stdout=output, stderr=output)


def killed(recipe: Path, run_dir: Path, chance: random.Random, until: int) -> Kill:
    """One start of the run, and its end by SIGKILL."""
    moment = chance.choices(["loading", "step", "checkpoint"], [1, 3, 4])[0]
    victim = chance.choices(["rank", "launcher", "all"], [6, 2, 2])[0]
    runner = start(recipe, run_dir)
    tree = processes(runner)
    begun, target = steps(run_dir), chance.randint(saved_step(run_dir), max(until, saved_step(run_dir)))
    if moment == "loading":
        time.sleep(chance.uniform(0, 6))
    else:
        wait(lambda: steps(run_dir) != begun, runner)  # lines past the checkpoint are dropped, then new ones come
        wait(lambda: steps(run_dir) >= target, runner)
    if moment == "checkpoint":
        wait(lambda: half_written(run_dir), runner)
    time.sleep(chance.uniform(0, 0.06))
    launcher, *ranks = tree[1:]
    step = steps(run_dir)
    made = saved_step(run_dir) if step == begun else step  # else the lines are an earlier start's
    hit = {"rank": [chance.choice(ranks)], "launcher": [launcher], "all": tree}[victim]
    for pid in hit:
        os.kill(pid, signal.SIGKILL)
    since = time.monotonic()
    while any(alive(pid) for pid in tree):
        runner.poll()
        assert time.monotonic() - since < GRACE, f"{victim} killed at {moment}: {[p for p in tree if alive(p)]} live on"
        time.sleep(0.05)
    return Kill(
        victim,
        moment,
        step,
        max(0, made - saved_step(run_dir)),
        half_written(run_dir),
        round(time.monotonic() - since, 2),
    )


def processes(runner: subprocess.Popen) -> list[int]:
    """The command, the launcher that it starts, and the ranks, once they are there."""
    found: list[int] = []

    def complete() -> bool:
        launchers = launch.children(runner.pid)[:1]
        found[:] = [runner.pid, *launchers, *(rank for launcher in launchers for rank in launch.children(launcher))]
        return len(found) == 2 + RANKS

    wait(complete, runner)
    return found


def wait(condition, runner: subprocess.Popen) -> None:
    """Looks every millisecond; a checkpoint of this size is written in some 50."""
    while not condition():
        assert runner.poll() is None, f"the run ended by itself ({runner.returncode})"
        time.sleep(0.001)


def steps(run_dir: Path) -> int:
    return max((line["step"] for line in read_metrics(run_dir)), default=0)


def half_written(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".writing-*"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def summary(kills: list[Kill]) -> dict:
    lost = [kill.lost for kill in kills]
    return {
        "kills": len(kills),
        "victims": Counter(kill.victim for kill in kills),
        "moments": Counter(kill.moment for kill in kills),
        "left half a checkpoint": sum(kill.left_half_written for kill in kills),
        "steps lost": {"sum": sum(lost), "most": max(lost), "each": lost},
        "seconds until the last process had ended": {"most": max(kill.seconds for kill in kills)},
    }


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=30)
    p.add_argument("--seed", type=int, default=0)
    given = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(summary(drill(Path(scratch), given.kills, given.seed)), indent=1))
    print("parameters, moments and metrics equal those of the uninterrupted run")

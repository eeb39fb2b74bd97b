"""Real launches, as a user types them, from the repository root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.distributed.launcher_env import free_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "MAKE", "MFLAGS"))
    },
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{BIN}:{os.environ['PATH']}",
}

# the demo, cut down to a few steps
SHORT = ("--optim.steps", "6", "--logging.every_steps", "1", "--evaluation.limit", "12", "--data.validation.rows", "32")


def run(
    *words: object, code: int | None = 0, timeout: float = 900, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a command and checks its exit code (None: any)."""
    done = subprocess.run(
        [str(w) for w in words],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert code is None or done.returncode == code, (
        f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done


def launcher(ranks: int) -> list[object]:
    """`deepspeed --num_gpus RANKS`, on a port of its own; a script and its options follow."""
    return [BIN / "deepspeed", "--num_gpus", ranks, "--master_port", free_port()]


def deepspeed(ranks: int, *words: object, **kwargs) -> subprocess.CompletedProcess:
    """`deepspeed --num_gpus RANKS ...`"""
    return run(*launcher(ranks), *words, **kwargs)


def python(*words: object, **kwargs) -> subprocess.CompletedProcess:
    """`python ...`"""
    return run(sys.executable, *words, **kwargs)


def popen(*words: object, cwd: Path = ROOT, env: dict[str, str] = ENVIRONMENT, **kwargs: Any) -> subprocess.Popen:
    """Starts a command; `env` is its whole environment."""
    return subprocess.Popen([str(word) for word in words], cwd=cwd, env=env, **kwargs)


def children(pid: int) -> list[int]:
    """Processes that a process has started; none for one that has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []

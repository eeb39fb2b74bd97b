"""Real launches from the repository root: commands as a user types them, and ranks that skip the imports.

A rank needs 7 s of a core to import torch, DeepSpeed and transformers, more than a tiny run takes. Where a launcher or the
start itself is not what a test is about, `ranks`, `stage` and `Rank` fork from a process that has imported what the stages import.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest import mock

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
        [str(w) for w in words], cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=timeout
    )
    return _checked(done, code)


def _checked(done: subprocess.CompletedProcess, code: int | None) -> subprocess.CompletedProcess:
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


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "tests.launch",
        "pipeline.training.run",
        "pipeline.alignment.build",
        "pipeline.evaluation.runner",
        "pipeline.reporting.page",
    ]
)


class Rank:
    """`python SCRIPT ...` in a forked process; has the methods of a Popen that tests call.

    Args:
        words: the script and its words.
        output, errors: files that its two streams are added to.
        environment: over ENVIRONMENT. Variables that are read as torch is imported (OMP_NUM_THREADS) come too late.
    """

    def __init__(
        self, words: Sequence[object], output: Path, errors: Path, environment: Mapping[str, object] | None = None
    ) -> None:
        output.touch()
        errors.touch()
        whole = ENVIRONMENT | {name: str(value) for name, value in (environment or {}).items()}
        self._process = _forks.Process(target=_run, args=([str(w) for w in words], str(output), str(errors), whole))
        with mock.patch.dict(os.environ, ENVIRONMENT):  # the first one starts the server of forks
            self._process.start()
        self.pid = self._process.pid
        self.sentinel = self._process.sentinel

    def poll(self) -> int | None:
        """The exit code of a process that has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it by SIGTERM, or by SIGKILL if that takes more than a minute."""
        self.send_signal(signal.SIGTERM)
        self._process.join(60)
        self.kill()
        self._process.join()


def _run(words: list[str], output: str, errors: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((0, os.devnull), (1, output), (2, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), stream)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


def ranks(count: int, *words: object, code: int | None = 0, timeout: float = 900) -> subprocess.CompletedProcess:
    """COUNT forked ranks of a script, as a launcher starts them: one that fails ends the others. Checks the exit code."""
    place = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return _finish([place | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(count)], words, code, timeout)


def stage(
    *words: object, code: int | None = 0, timeout: float = 900, **environment: str
) -> subprocess.CompletedProcess:
    """`python ...` in a forked process. Checks the exit code."""
    return _finish([environment], words, code, timeout)


def _finish(
    places: Sequence[Mapping[str, object]], words: Sequence[object], code: int | None, timeout: float
) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        found = [Rank(words, output, errors, place) for place in places]
        failed: list[int] = []
        try:
            while not failed and (running := [rank for rank in found if rank.poll() is None]):
                if not wait([rank.sentinel for rank in running], timeout):
                    raise subprocess.TimeoutExpired(words, timeout, errors.read_text())
                failed = [rank.poll() for rank in found if rank.poll()]
        finally:
            for rank in found:
                rank.stop()
        done = subprocess.CompletedProcess(words, *failed[:1] or [0], output.read_text(), errors.read_text())
    return _checked(done, code)


def children(pid: int) -> list[int]:
    """Processes that a process has started; none for one that has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []

"""The align stage in several processes and ranks."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.core.files import read_json
from tests import launch
from tests.alignment_stage import ROWS, write_jsonl


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mpirun() -> str:
    return shutil.which("mpirun", path=launch.ENVIRONMENT["PATH"]) or pytest.skip("no mpirun")


@pytest.mark.launch
def test_worker_processes_and_mpi_ranks_write_the_same_dataset(run_align, align_recipe, tmp_path):
    run_align()
    arguments = ["--recipe", str(align_recipe), "--shard-rows", "16", "--data.aligned"]
    launch.python("pipeline/align.py", *arguments, tmp_path / "two", "--processes", "2")
    assert files(tmp_path / "two") == files(tmp_path / "aligned")
    module = [mpirun(), "-n", "2", sys.executable, "-m", "pipeline.align", *arguments]
    ranks = launch.run(*module, tmp_path / "ranks")
    assert files(tmp_path / "ranks") == files(tmp_path / "aligned")
    assert ranks.stdout.count("reused 0 shards, built 4") == 1
    assert read_json(tmp_path / "run/status/align.json")["state"] == "done"


@pytest.mark.launch
def test_a_failing_rank_ends_all(align_recipe, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:20], {"messages": 1}, *ROWS])  # in the second shard: rank 1
    arguments = ["--recipe", str(align_recipe), "--shard-rows", "16"]
    started = time.monotonic()
    failed = launch.run(mpirun(), "-n", "2", sys.executable, "pipeline/align.py", *arguments, code=2)
    assert time.monotonic() - started < 55  # no rank waits for a launcher to end it
    assert failed.stderr.count("row 20 (line 21): no `messages`") == 1 and "Traceback" not in failed.stderr
    assert not (tmp_path / "aligned/manifest.json").exists()


@pytest.mark.launch
def test_a_dataset_that_another_process_builds_is_waited_for(run_align, align_recipe, tmp_path):
    run_align("--data.aligned", str(tmp_path / "made"))
    with (tmp_path / ".aligned.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "pipeline/align.py", "--recipe", str(align_recipe), "--shard-rows", "16"]
        waiting = subprocess.Popen(command, cwd=launch.ROOT, stdout=subprocess.PIPE, text=True)
        assert "is being built by another process: waiting" in waiting.stdout.readline()
        shutil.copytree(tmp_path / "made", tmp_path / "aligned")
    output, _ = waiting.communicate(timeout=600)
    assert waiting.returncode == 0 and "reused 4 shards, built 0" in output


def start(recipe: Path, folder: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """align with two workers, once they have written their first shards, and the workers."""
    write_jsonl(folder / "rows.jsonl", ROWS * 400)
    words = ["pipeline/align.py", "--recipe", str(recipe), "--shard-rows", "200", "--processes", "2"]
    running = subprocess.Popen(
        [sys.executable, *words], cwd=launch.ROOT, env=launch.ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: list((folder / "aligned").glob("shard-*.arrow")))
    return running, psutil.Process(running.pid).children()


@pytest.mark.launch
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_align(align_recipe, tmp_path, number):
    """It would hold the dataset's lock."""
    running, workers = start(align_recipe, tmp_path)
    running.send_signal(number)
    assert running.wait(60) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    assert len(workers) == 2 and not (tmp_path / "aligned/manifest.json").exists()
    if number == signal.SIGTERM:
        assert read_json(tmp_path / "run/status/align.json")["state"] == "stopped"


@pytest.mark.launch
def test_a_killed_worker_is_named(align_recipe, tmp_path):
    running, workers = start(align_recipe, tmp_path)
    workers[0].kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 2 and "Traceback" not in errors
    assert "a worker process was killed (out of memory?): run the same command with fewer --processes" in errors

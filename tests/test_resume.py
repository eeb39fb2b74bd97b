"""Real runs that are stopped, killed, starved of disk or fed nonsense: what they say, what they leave, and how they go on."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pipeline.core.checkpoint_files import complete_checkpoints, saved_step
from pipeline.core.run_directory import read_metrics, stop_file
from tests import launch, tiny
from tests.drills.kill_anywhere import drill

pytestmark = pytest.mark.launch
HOST = socket.gethostname()
LONG = ["--optim.steps", "100000", "--checkpoint.every_steps", "0"]
LONG += ["--logging.every_steps", "1", "--logging.validate_every", "0"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """An uninterrupted run of two ranks, with a checkpoint every second step."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    tiny.train(recipe, run_dir, 2)
    return run_dir


def wait_for(condition: Callable[[], object], ranks: list, timeout: float = 900) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline and all(rank.poll() is None for rank in ranks)
        time.sleep(0.02)


def trained(run_dir: Path, steps: int) -> Callable[[], bool]:
    return lambda: any(line["step"] >= steps for line in read_metrics(run_dir))


# Going on


def cut_back(whole: Path, run_dir: Path, step: int) -> Path:
    """The run as if it had been killed on its way to the last checkpoint, whose file is damaged besides."""
    shutil.copytree(whole, run_dir)
    (run_dir / "status/distill.json").unlink()
    for place in complete_checkpoints(run_dir):
        if int(place.name[-8:]) > step:
            shutil.rmtree(place)
    return run_dir


def test_a_resumed_run_is_the_uninterrupted_one(recipe, whole, tmp_path):
    """From step 4, between two lines of metrics (3, 6); step 6's checkpoint is damaged."""
    run_dir = cut_back(whole, tmp_path / "run", 6)
    state = run_dir / "checkpoints/step-00000006/state/rank-00001-of-00002.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    text = tiny.train(recipe, run_dir, 2)
    assert f"WARNING {state} is damaged or missing: going on from step-00000004" in text
    tiny.assert_same(run_dir, whole)
    assert [line["step"] for line in tiny.lines(run_dir)] == [3, 4, 6, 8, 8]
    assert tiny.status(run_dir)["state"] == "done" and tiny.status(run_dir)["step"] == 8


def test_another_number_of_ranks_goes_on(recipe, whole, tmp_path):
    run_dir = cut_back(whole, tmp_path / "run", 4)
    tiny.train(recipe, run_dir, 1)
    ours, theirs = tiny.tensors(run_dir), tiny.tensors(whole)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for line, other in zip(tiny.lines(run_dir), tiny.lines(whole), strict=True):
        assert [line.get(name) for name in ("step", "lr", "tokens")] == [
            other.get(name) for name in ("step", "lr", "tokens")
        ]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_first_step_is_on_the_first_screen(whole):
    """Within ten lines of 80 columns."""
    lines = tiny.log(whole, 0).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if " step " in line and " loss " in line)
    assert sum(math.ceil(len(line) / 80) for line in lines[: first + 1]) <= 10 and len(lines[first]) <= 80
    assert "\r" not in tiny.log(whole, 0).read_bytes().decode()


def test_a_branch_starts_from_an_exported_checkpoint(recipe, whole, tmp_path):
    """Another learning rate and seed from step 4, as docs/recipes.md says: its weights, the same aligned dataset, steps from 1."""
    export = whole / "checkpoints/step-00000004/export"
    words = ["--student.path", export, "--student.weights", "pretrained", "--data.seed", "1"]
    words += ["--student.tokenizer", recipe.parent / "student"]
    words += ["--optim.lr", "1e-9", "--optim.steps", "2", "--logging.every_steps", "1"]
    tiny.train(recipe, tmp_path / "branch", 1, *words)
    before, after = (
        load_file(place / "model.safetensors")
        for place in (export, tmp_path / "branch/checkpoints/step-00000002/export")
    )
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    for name in before:
        assert_close(after[name], before[name], rtol=0, atol=1e-8)
    assert [line["step"] for line in tiny.lines(tmp_path / "branch") if line["kind"] == "train"] == [1, 2]


# Stopping


def test_a_signal_while_models_load_ends_at_once(recipe, tmp_path):
    (rank,) = tiny.start(recipe, tmp_path / "run", 1)
    wait_for(lambda: "ranks: 1" in tiny.log(tmp_path / "run", 0).read_text(), [rank])
    rank.send_signal(signal.SIGUSR1)
    assert tiny.finish([rank], timeout=60) == [75]
    status = tiny.status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("stopped", 0) and "before training began" in status["message"]


def test_a_stop_command_ends_one_run_as_a_signal_does(recipe, tmp_path):
    """A request that an earlier start has left does not count."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    stop_file(run_dir).touch()
    ranks = tiny.start(recipe, run_dir, 2, *LONG)
    wait_for(trained(run_dir, 3), ranks)
    assert "was asked to stop" in launch.stage("pipeline/stop.py", run_dir).stdout
    assert tiny.finish(ranks, timeout=60) == [75, 75]
    status = tiny.status(run_dir)
    assert status["message"].startswith(f"stopped as asked at step {status['step']}/100000")
    assert complete_checkpoints(run_dir)[-1].name == f"step-{status['step']:08d}" and not stop_file(run_dir).exists()
    done = launch.stage("pipeline/stop.py", run_dir, code=2)
    assert done.stderr == f"stop: {run_dir} is not running (stopped): there is nothing to stop\n"


@pytest.mark.slow
def test_a_rank_without_its_launcher_saves_and_stops(recipe, tmp_path):
    """The launcher dies by SIGKILL: nobody tells the ranks, and the launcher's own parent sees nothing wrong."""
    run_dir = tmp_path / "run"
    words = [*launch.launcher(2), "pipeline/distill.py", "--recipe", recipe, "--run_dir", run_dir]
    launcher = launch.popen(*words, *LONG)
    wait_for(trained(run_dir, 3), [launcher])
    (middle,) = launch.children(launcher.pid)
    ranks = launch.children(middle)
    assert len(ranks) == 2
    os.kill(middle, signal.SIGKILL)
    launcher.wait(60)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks), [])
    status = tiny.status(run_dir)
    assert (status["state"], status["exit_code"]) == ("stopped", 75) and status["step"] >= 3
    assert complete_checkpoints(run_dir)[-1].name == f"step-{status['step']:08d}"


def test_saves_by_the_clock_and_outlives_a_full_disk(recipe, tmp_path):
    """No file may grow beyond 100 kB for a while: a failed checkpoint leaves nothing, older ones stay, and a later one is written."""
    run_dir = tmp_path / "run"
    (rank,) = tiny.start(recipe, run_dir, 1, *LONG, "--checkpoint.every_minutes", "0.0001", "--checkpoint.keep", "1")
    wait_for(lambda: complete_checkpoints(run_dir), [rank])
    limits = resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    full = re.compile(
        r"WARNING (\S+) could not be written \(rank 0 on (\S+): .*File too large.*\); the last complete checkpoint is of step (\d+); "
        "the run goes on"
    )
    wait_for(lambda: full.search(tiny.log(run_dir, 0).read_text()), [rank])
    resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, limits)
    place, host, newest = full.search(tiny.log(run_dir, 0).read_text()).groups()
    assert host == HOST and Path(place).parent == run_dir / "checkpoints" and int(newest) > 0
    wait_for(lambda: saved_step(run_dir) > int(newest), [rank])
    resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    rank.send_signal(signal.SIGTERM)
    assert tiny.finish([rank], timeout=60) == [2]  # it cannot save: one line, as for any bad input
    status = tiny.status(run_dir)
    assert status["state"] == "failed" and "could not be written" in status["message"]
    assert complete_checkpoints(run_dir) and not list((run_dir / "checkpoints").glob(".*"))


# Hangs and corpses


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_dead_rank_ends_the_others_and_is_named(recipe, tmp_path, victim):
    run_dir = tmp_path / "run"
    ranks = tiny.start(recipe, run_dir, 2, *LONG)
    wait_for(trained(run_dir, 3), ranks)
    ranks[victim].kill()
    died = time.monotonic()
    assert ranks[1 - victim].wait(60) != 0
    assert time.monotonic() - died < 30
    status = tiny.status(run_dir)
    assert status["state"] == "failed" and status["exit_code"] == 1
    where = (
        rf"rank 1 on {re.escape(HOST)} died while taking step \d+ \(killed"
        if victim
        else r"rank 0 died or ended the run while taking step \d+"
    )
    assert re.search(where, status["message"])
    assert status["message"] in tiny.log(run_dir, 1 - victim).read_text()
    tiny.finish(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_ends_the_run_and_is_named(recipe, tmp_path, victim):
    run_dir = tmp_path / "run"
    ranks = tiny.start(recipe, run_dir, 2, *LONG, "--timeout-minutes", "0.25")
    wait_for(trained(run_dir, 3), ranks)
    ranks[victim].send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    assert ranks[1 - victim].wait(180) == 1
    assert 14 < time.monotonic() - frozen < (60 if victim else 150)
    host = re.escape(HOST)
    said = (
        rf"no progress while taking step \d+ for 15 s: rank 1 on {host} in \S+\.py:\d+ \w+$"
        if victim
        else rf"rank 0 on {host} frozen or cut off while taking step \d+: not heard of for \d+ s$"
    )
    assert re.match(said, tiny.status(run_dir)["message"])
    assert "most recent call first" in tiny.log(run_dir, 1 - victim).read_text()
    ranks[victim].send_signal(signal.SIGCONT)
    assert ranks[victim].wait(60) == 1
    tiny.finish(ranks)


# Nonsense


SLOW = [pytest.param(engine, marks=pytest.mark.slow) for engine in ("zero0", "zero3_bf16", "zero1_bf16")]


@pytest.mark.parametrize("engine", ["zero3", *SLOW])
def test_a_row_without_a_finite_loss_is_named_and_no_step_is_taken(recipe, tmp_path, engine):
    """On two ranks, of which one has the row."""
    words = ["--recipe", recipe, "--optim.global_batch", "41"]  # every step has the odd row
    words += ["--teachers.dtype", "bfloat16"] if "bf16" in engine else []
    script = "tests/distributed/not_finite.py"
    launch.ranks(2, script, tmp_path / "found", *words, "--deepspeed", f"ds_configs/{engine}.json")
    found = [json.loads((tmp_path / f"found.rank{rank}").read_text()) for rank in range(2)]
    for rank in found:
        assert rank["message"].startswith("the loss of sums row 40 is not finite at step 1: no step was taken")
        assert rank["unchanged"] and rank["again"] == rank["message"]


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path):
    """Five kills; `python tests/drills/kill_anywhere.py` makes thirty."""
    kills = drill(tmp_path, kills=5, seed=2)
    assert len(kills) == 5

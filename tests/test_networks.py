"""Networks that break, between two hosts of two ranks each: the run ends and names who is lost, or goes on to the same numbers."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.core.errors import STOPPED_EARLY
from pipeline.core.run_directory import read_metrics
from tests import tiny
from tests.network import ADDRESSES, HOSTS, Network

pytestmark = [pytest.mark.launch, pytest.mark.slow]

LIMIT, ENDED = 30.0, 60.0
"""Seconds without progress that a run bears, and after which all of it must have ended."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    optim = {"steps": 7, "lr": 0.01, "global_batch": 6, "micro_tokens": 1200}
    return tiny.make(tmp_path_factory.mktemp("tiny"), optim=optim, logging={"every_steps": 1, "validate_every": 4})


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        try:
            network = stack.enter_context(Network())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this machine lets no network namespaces be made: {error}")
        yield network


@pytest.fixture(autouse=True)
def healed(network) -> Iterator[None]:
    yield
    network.cut, network.delay, network.loss = False, 0.0, 0.0


@pytest.fixture(scope="module")
def whole(network, recipe, tmp_path_factory) -> Path:
    """The run that nothing has disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finished(network.start(run_dir, "--recipe", recipe), run_dir)
    return run_dir


def finished(ranks, run_dir: Path) -> None:
    assert tiny.finish(ranks, 120) == [0] * len(ranks), [tiny.log(run_dir, n).read_text()[-1500:] for n in range(4)]


def begun(run_dir: Path) -> bool:
    return len(read_metrics(run_dir)) >= 2


def in_a_step(run_dir: Path) -> bool:
    """The sixth: five lines of training and one of validation are there, and the save after the fourth step is done."""
    return len(read_metrics(run_dir)) >= 6


def in_a_save(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".writing-*"))


def wait_for(condition, run_dir: Path, running, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition(run_dir):
        assert time.monotonic() < until and [one.poll() for one in running] == [None] * len(running)
        time.sleep(0.002)


def cut_for_a_while(network: Network, run_dir: Path, ranks) -> None:
    """The run waits, and goes on when the link is there again."""
    wait_for(begun, run_dir, ranks)
    network.cut, before = True, len(read_metrics(run_dir))
    time.sleep(2)
    assert len(read_metrics(run_dir)) <= before + 1
    network.cut = False


@pytest.mark.parametrize(
    ("moment", "phase", "address"),
    [(in_a_step, "taking step", ADDRESSES[0]), (in_a_save, "saving the checkpoint", "10.77.0.3")],
    ids=["step", "save"],
)
def test_a_link_that_is_gone_ends_both_sides_and_the_run_goes_on_later(
    network, recipe, whole, tmp_path, moment, phase, address
):
    """Before that it is gone for 2 s, which the run bears; when it goes on, the first host may have another address."""
    run_dir = tmp_path / "run"
    ranks = network.start(run_dir, "--recipe", recipe, "--timeout-minutes", LIMIT / 60)
    cut_for_a_while(network, run_dir, ranks)
    wait_for(moment, run_dir, ranks)
    network.cut, since = True, time.monotonic()
    codes = tiny.finish(ranks, ENDED)
    assert time.monotonic() - since < ENDED and 0 not in codes
    for side, other in ((0, HOSTS[1]), (2, HOSTS[0])):
        said = rf"^distill: (?=.*{phase}).*rank \d on {other}"
        assert re.search(said, tiny.log(run_dir, side).read_text(), re.MULTILINE)
    status = tiny.status(run_dir)
    assert status["state"] == "failed" and any(host in status["message"] for host in HOSTS)
    network.cut = False
    network.move_first_host(address)
    finished(network.start(run_dir, "--recipe", recipe), run_dir)
    tiny.assert_same(run_dir, whole)


def test_a_slow_and_lossy_link_changes_no_number(network, recipe, whole, tmp_path):
    """Round trips of 200 ms and a packet in twenty lost, from the start to a stop that saves; then the link is well again."""
    run_dir = tmp_path / "run"
    network.delay, network.loss = 0.1, 0.05
    ranks = network.start(run_dir, "--recipe", recipe)
    wait_for(read_metrics, run_dir, ranks, 400)
    (run_dir / "stop").touch()
    assert tiny.finish(ranks, 300) == [STOPPED_EARLY] * len(ranks)
    assert tiny.lines(run_dir) == tiny.lines(whole)[: len(tiny.lines(run_dir))]
    network.delay = network.loss = 0.0
    finished(network.start(run_dir, "--recipe", recipe), run_dir)
    tiny.assert_same(run_dir, whole)


def test_a_full_disk_of_one_host_costs_a_save_and_is_named(network, recipe, whole, tmp_path):
    """A file of the third rank may not grow beyond 20 kB for a while."""
    run_dir = tmp_path / "run"
    ranks = network.start(run_dir, "--recipe", recipe)
    wait_for(begun, run_dir, ranks)
    limits = resource.prlimit(ranks[2].pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    said = re.compile(rf"could not be written \(rank 2 on {HOSTS[1]}: .*File too large")
    wait_for(lambda _: said.search(tiny.log(run_dir, 0).read_text()), run_dir, ranks)
    resource.prlimit(ranks[2].pid, resource.RLIMIT_FSIZE, limits)
    finished(ranks, run_dir)
    tiny.assert_same(run_dir, whole)

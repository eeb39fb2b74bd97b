"""The watchdog by itself: two processes that meet through a file and do nothing. With real training: test_resume.py."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import launch

pytestmark = pytest.mark.launch
RANK = """
import pickle, sys, time
from pathlib import Path
import torch
from pipeline.distributed import watchdog
from pipeline.distributed.topology import Topology

folder, rank = Path(sys.argv[1]), int(sys.argv[2])

class Meeting(Topology):
    def broadcast_object(self, value):
        if self.rank == 0:
            (folder / "half").write_bytes(pickle.dumps(value))
            return (folder / "half").rename(folder / "value") and value
        while not (folder / "value").exists():
            time.sleep(0.01)
        return pickle.loads((folder / "value").read_bytes())

def fail(message, code):
    (folder / f"verdict{rank}").write_text(f"{code} {message}")

watchdog.SILENCE = 2.0
with watchdog.Watchdog(Meeting(rank, 2, 2, torch.device("cpu")), 2.0, fail) as watch:
    (folder / f"ready{rank}").touch()
    while True:
        watch.heartbeat("idling")
        time.sleep(0.05)
"""


@pytest.fixture
def ranks(tmp_path):
    environment = launch.ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1"}
    words = [sys.executable, "-c", RANK, tmp_path]
    found = [launch.popen(*words, rank, env=environment, stderr=subprocess.DEVNULL) for rank in (0, 1)]
    while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
        assert all(rank.poll() is None for rank in found)
        time.sleep(0.02)
    yield found
    for rank in found:
        rank.kill()
        rank.wait()


def verdict(folder: Path, rank: int) -> str:
    return (folder / f"verdict{rank}").read_text()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_is_named_by_the_other(ranks, tmp_path, victim):
    ranks[victim].send_signal(signal.SIGSTOP)
    assert ranks[1 - victim].wait(30) == 1
    said = rf"1 rank {victim} on \S+ frozen or cut off while idling: not heard of for \d+ s"
    assert re.fullmatch(said, verdict(tmp_path, 1 - victim))

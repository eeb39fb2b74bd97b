"""Groups, waits and failures of ranks, without a second process."""

from __future__ import annotations

import errno
import pickle
import re
import socket
import sys

import pytest
import torch

from pipeline.config.recipe import Recipe, Student, Teacher
from pipeline.core.errors import BadInput, for_user
from pipeline.distributed import device_reads
from pipeline.distributed.collectives import RanksFailed, all_or_error, first_or_error
from pipeline.distributed.topology import check_expert_parallel_groups, lost_gpus
from pipeline.distributed.watchdog import is_waiting
from pipeline.training import build
from tests import launch

GROUPS = """
import sys
from datetime import timedelta
from pathlib import Path
import deepspeed, torch, torch.distributed as dist
from torch.distributed import distributed_c10d
from pipeline.distributed import flight_recorder
from pipeline.distributed.topology import start
topology = start(timedelta(minutes=47))
dist.all_reduce(torch.ones(3))
group = deepspeed.comm.new_group([0])  # as ZeRO and expert parallelism make theirs
flight_recorder.dump(Path(sys.argv[1]), topology.rank)
print(dist.get_process_group_ranks(group), group._get_backend(torch.device("cpu")).options._timeout)
print(distributed_c10d._get_default_timeout(dist.Backend.NCCL))
"""


@pytest.mark.launch
def test_every_group_waits_as_long_as_the_command_line_says_and_collectives_are_recorded(tmp_path):
    done = launch.python("-c", GROUPS, tmp_path / "flight_recorder", MASTER_PORT=str(launch.free_port()))
    assert done.stdout.splitlines()[-2:] == ["[0] 0:47:00", "0:47:00"]
    recorded = pickle.loads((tmp_path / "flight_recorder/rank_0").read_bytes())
    assert "gloo:all_reduce" in [entry["profiling_name"] for entry in recorded["entries"]]


@pytest.mark.launch
def test_a_port_of_another_program_is_named():
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        failed = launch.stage("tests/distributed/gradients.py", "nowhere", "{}", code=1, **place)
    assert re.search(f"BadInput: port {port} .* in use by another program: .*--master_port", failed.stderr)


def test_a_job_with_gpus_must_not_train_on_the_cpu(tmp_path):
    assert lost_gpus({"SLURM_JOB_ID": "1"}, tmp_path) == ""
    granted = lost_gpus({"SLURM_GPUS_ON_NODE": "8"}, tmp_path / "nowhere")
    assert granted == "the job was given GPUs (SLURM_GPUS_ON_NODE=8)"
    (tmp_path / "0000:01:00.0").mkdir()
    assert lost_gpus({}, tmp_path) == f"this node has GPUs ({tmp_path})"


def test_expert_parallel_groups_lie_inside_a_node(capsys):
    check_expert_parallel_groups(["a", "a", "b", "b"], {"moe": 2, "dense": 1}, 2)
    torn = r"teacher moe: ranks 0 to 1 share its experts and are on several nodes: .*by slot"
    with pytest.raises(BadInput, match=torn):
        check_expert_parallel_groups(["a", "b", "a", "b"], {"moe": 2}, 2)
    assert capsys.readouterr().out == ""
    check_expert_parallel_groups(["a", "a", "b", "b"], {"moe": 4}, 2)  # asked for by name: no node has four
    assert "WARNING teacher moe: ranks 0 to 3 share its experts across nodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "waits"),
    [
        ("/x/torch/distributed/distributed_c10d.py", True),
        ("/x/torch/cuda/streams.py", True),
        ("/x/deepspeed/runtime/zero/stage3.py", True),
        ("/x/torch/nn/modules/linear.py", False),
        ("/x/pipeline/training/loop.py", False),
    ],
)
def test_a_rank_that_waits_for_the_device_is_not_named(file, waits):
    assert is_waiting(file) == waits


def test_our_own_reads_of_the_device_are_waits():
    files = []

    class Observed(torch.Tensor):
        def tolist(self):
            files.append(sys._getframe(1).f_code.co_filename)
            return super().tolist()

    assert device_reads.read(torch.ones(2).as_subclass(Observed)) == [1, 1]
    assert is_waiting(*files)


def fail(error: Exception):
    raise error


def test_the_failure_of_one_rank_is_everybodys():
    two = [(1, None), (None, "rank 1 on b: OSError: full")]
    assert all_or_error(lambda: 7, lambda own: [own, (8, None)]) == [7, 8]
    with pytest.raises(RanksFailed, match="rank 1 on b: OSError: full"):
        all_or_error(lambda: 1, lambda own: two)
    with pytest.raises(RanksFailed, match=r"rank 0 on \S+: OSError: full"):
        all_or_error(lambda: fail(OSError("full")), lambda own: [own])
    with pytest.raises(BadInput, match="^no such folder$"):
        all_or_error(lambda: fail(BadInput("no such folder")), lambda own: [own, (None, "another")])
    with pytest.raises(BadInput, match="make room"):
        all_or_error(for_user(lambda: fail(OSError(errno.ENOSPC, "full"))), lambda own: [own])
    with pytest.raises(ValueError):
        all_or_error(lambda: fail(ValueError()), lambda own: [own], caught=(OSError,))
    assert first_or_error(lambda: 3, True, lambda own: own) == 3
    assert first_or_error(lambda: fail(ValueError()), False, lambda own: (3, None)) == 3
    with pytest.raises(BadInput, match="damaged"):
        first_or_error(lambda: 3, False, lambda own: (None, BadInput("damaged")))


def test_one_rank_of_a_node_fetches_from_the_hub(monkeypatch):
    fetched = []
    monkeypatch.setattr(build, "fetch", lambda path, patterns: fetched.append(path))
    recipe = Recipe("r", Student("org/student", weights="random"), teachers=[Teacher("moe", "org/teacher")])
    for local_rank in ("1", "0"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert fetched == []
        build.fetch_models(recipe)
    assert set(fetched) == {"org/student", "org/teacher"}

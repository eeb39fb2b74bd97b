"""The ranks of a run."""

from __future__ import annotations

import atexit
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.distributed.launcher_env import build_cpu_ops

T = TypeVar("T")


@dataclass(frozen=True)
class Topology:
    """This process among the ranks."""

    rank: int
    world_size: int
    local_world_size: int
    """Ranks on this node."""
    device: torch.device
    control: dist.ProcessGroup | None = None
    """The ranks' group for numbers and objects on the CPU, which no device waits for; None before `start`."""

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks. Collective."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value on every rank. Collective."""
        values = [value]
        dist.broadcast_object_list(values, group=self.control)
        return values[0]


def launched() -> Topology:
    """The topology that the launcher's environment names, before any process group exists (no launcher: one rank)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world)))
    return Topology(int(os.environ.get("RANK", 0)), world, local, torch.device("cpu"))


def start(timeout: timedelta) -> Topology:
    """Joins the process groups (gloo on CPU, nccl on GPU) and picks this rank's device.

    timeout: the longest that a collective waits for another rank. On CPU, the cores are shared out between the ranks of a
    node, unless OMP_NUM_THREADS says otherwise.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    here, accelerator = launched(), get_accelerator()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    cpu = accelerator.device_name() == "cpu"
    if cpu:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // here.local_world_size))
        build_cpu_ops()
    else:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(
        dist_backend="gloo" if cpu else accelerator.communication_backend_name(),
        timeout=timeout,
        verbose=False,
    )
    atexit.register(remove_shared_memory, here.rank)
    if cpu:
        atexit.register(_leave)
    device = torch.device(accelerator.current_device_name())
    control = dist.group.WORLD if cpu else dist.new_group(backend="gloo", timeout=timeout)
    return Topology(dist.get_rank(), dist.get_world_size(), here.local_world_size, device, control)


def _leave() -> None:
    """Ends gloo's threads before Python ends: a process that dies with them running is aborted now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()


def remove_shared_memory(rank: int) -> None:
    """DeepSpeed's CPU collectives leave 66 MiB a rank in /dev/shm, under a name of the port."""
    for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{os.environ['MASTER_PORT']}_{rank}"):
        file.unlink(missing_ok=True)

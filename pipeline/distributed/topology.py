"""The ranks of a run."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from pipeline.core.errors import BadInput
from pipeline.core.log import log
from pipeline.distributed import flight_recorder
from pipeline.distributed.launcher_env import spare_inference_op

T = TypeVar("T")

_GRANTED = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")


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
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value on every rank. Collective."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.control)
        return values[0]


def launcher_topology() -> Topology:
    """The topology that the launcher's environment names, before any process group exists (no launcher: one rank)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world)))
    return Topology(int(os.environ.get("RANK", 0)), world, local, torch.device("cpu"))


def start(timeout: timedelta) -> Topology:
    """Joins the process groups (gloo on CPU, nccl on GPU) and picks this rank's device.

    The ranks of a node share its cores out, unless OMP_NUM_THREADS says otherwise.

    Args:
        timeout: the longest that a collective waits for another rank, in every group that anybody makes.

    Raises BadInput for a job with GPUs in which torch sees none, and for a port that another program has.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    here, accelerator = launcher_topology(), get_accelerator()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    cpu = accelerator.device_name() == "cpu"
    if "OMP_NUM_THREADS" not in os.environ:  # beside GPUs, too: the optimizer may be on the host
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here.local_world_size))
    flight_recorder.record()
    # ZeRO and expert parallelism make groups of their own, which would take torch's defaults (NCCL: 10 minutes)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = timeout
    if cpu:
        if (reason := lost_gpus(os.environ, Path("/proc/driver/nvidia/gpus"))) and "DS_ACCELERATOR" not in os.environ:
            raise BadInput(
                f"{reason}, and torch sees none: check the driver and the CUDA build of torch, or set DS_ACCELERATOR=cpu to "
                "use the CPU"
            )
        spare_inference_op()
    else:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
        # float32 means float32: TF32 keeps 10 bits of the mantissa. bf16 does not care
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    backend = "gloo" if cpu else accelerator.communication_backend_name()
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise BadInput(
            f"port {os.environ['MASTER_PORT']} of this machine is in use by another program: give the launcher another one "
            "(deepspeed --master_port N, torchrun --master_port N)"
        ) from None
    if cpu:
        atexit.register(_leave)
    device = torch.device(accelerator.current_device_name())
    control = dist.group.WORLD if cpu else dist.new_group(backend="gloo", timeout=timeout)
    return Topology(dist.get_rank(), dist.get_world_size(), here.local_world_size, device, control)


def lost_gpus(environ: Mapping[str, str], driver: Path) -> str:
    """Why a process that found no GPU should have one; empty where it should not.

    Args:
        driver: the folder in which NVIDIA's driver lists this node's GPUs.
    """
    if any(driver.glob("*")):
        return f"this node has GPUs ({driver})"
    if granted := next((name for name in _GRANTED if environ.get(name)), ""):
        return f"the job was given GPUs ({granted}={environ[granted]})"
    return ""


def check_expert_parallel_groups(hosts: Sequence[str], sizes: Mapping[str, int], local_world_size: int) -> None:
    """Groups that fit on a node must not cross nodes: every MoE layer would exchange its tokens over the network.

    Args:
        hosts: of every rank.
        sizes: ranks that share one set of experts, by teacher. A group is of consecutive ranks.

    Raises BadInput where the launcher's numbering of the ranks tears a group apart.
    """
    for teacher, size in sizes.items():
        torn = next((first for first in range(0, len(hosts), size) if len(set(hosts[first : first + size])) > 1), None)
        if torn is None:
            continue
        where = f"teacher {teacher}: ranks {torn} to {torn + size - 1} share its experts"
        if size <= local_world_size:
            raise BadInput(f"{where} and are on several nodes: number the ranks node by node (mpirun --map-by slot)")
        if torn == 0:
            log.warning(f"{where} across nodes: every MoE layer exchanges its tokens over the network")


def _leave() -> None:
    """Ends gloo's threads before Python ends: a process that dies with them running is aborted now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()

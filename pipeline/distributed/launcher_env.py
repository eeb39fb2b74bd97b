"""What a launcher hands to its ranks: their numbers, where they meet, and whether it did what was asked of it."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import psutil

from pipeline.core.errors import BadInput
from pipeline.core.log import MPI_WORLD_SIZES

_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "WORLD_SIZE": MPI_WORLD_SIZES,
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    "LOCAL_WORLD_SIZE": ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}
"""torch's names, and what Open MPI and MPICH (Intel MPI) call the same."""


def normalize_launcher_env() -> None:
    """Makes the environment of every supported launcher look like torchrun's. To be called before torch is imported.

    Under mpirun, ranks get their numbers from its variables: mpi4py, which DeepSpeed would load, makes a rank that fails
    wait for its peers for ever. Compiled code goes to this node's own disk, unless TORCH_EXTENSIONS_DIR, TRITON_CACHE_DIR
    or TORCHINDUCTOR_CACHE_DIR name another place: on a shared one, nodes wait for one another's locks.

    Raises BadInput where ranks would train apart, each as if it were alone.
    """
    for name in _MPI:
        if not os.environ.get(name, "unset"):
            del os.environ[name]
    if "WORLD_SIZE" not in os.environ:
        for name, theirs in _MPI.items():
            for value in filter(None, map(os.environ.get, theirs)):
                os.environ.setdefault(name, value)
        several_nodes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) < int(os.environ.get("WORLD_SIZE", 1))
        if several_nodes and "MASTER_ADDR" not in os.environ:
            raise BadInput("ranks on several nodes need the first node's name: mpirun -x MASTER_ADDR=NODE ...")
        _refuse_plain_srun()
    if "WORLD_SIZE" not in os.environ:
        for name in _MPI:  # left over from something else, as MASTER_ADDR may be: who is alone meets nobody
            os.environ.pop(name, None)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with suppress(psutil.Error):  # processes of other users may be hidden
        check_hostfile([p.cmdline() for p in psutil.Process().parents()])
    _keep_caches_local()


def free_port() -> int:
    """A port of this machine that nobody uses: a rank that meets nobody needs no known one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _refuse_plain_srun() -> None:
    """In a step of several tasks without a launcher, every task would believe that it is the only rank."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and "RANK" not in os.environ:
        raise BadInput(f"srun started {tasks} ranks that do not know of one another: start torchrun, as slurm/ does")


def check_hostfile(parents: Sequence[Sequence[str]]) -> None:
    """`deepspeed --hostfile X` runs on this machine alone, with a warning, where there is no X. Raises BadInput for that.

    Args:
        parents: command lines of the processes above this one.
    """
    for options in filter(None, map(deepspeed_options, parents)):
        if options.hostfile and not Path(options.hostfile).is_file():
            raise BadInput(
                f"no hostfile {options.hostfile}: deepspeed would train on this machine alone; correct the path, or leave "
                "--hostfile out"
            )


def deepspeed_options(command: Sequence[str]) -> Namespace | None:
    """What a `deepspeed` command says of ranks and hosts, each None where it says nothing; None for any other command."""
    if not any(Path(word).name == "deepspeed" for word in command[:2]):
        return None
    options = ArgumentParser(add_help=False)
    options.add_argument("-H", "--hostfile")
    options.add_argument("-i", "--include")
    options.add_argument("-e", "--exclude")
    options.add_argument("--num_gpus", "--num_accelerators")
    options.add_argument("--num_nodes")
    return options.parse_known_args(list(takewhile(lambda word: not word.endswith(".py"), command)))[0]


def _keep_caches_local() -> None:
    """Compiled code goes to a folder on this node's disk that is this user's alone: what lies there is executed."""
    folder = Path(tempfile.gettempdir()) / f"tide-{os.getuid()}"
    with suppress(FileExistsError):  # a file, or a link to nowhere
        folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BadInput(f"{folder} is not this user's alone: remove it, or set TMPDIR to another folder")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder / "torch_extensions"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))


def spare_inference_op() -> None:
    """To be called before DeepSpeed's `init_distributed`, which on a CPU compiles an op that inference alone uses.

    It would take a minute and a C++ compiler, and 66 MiB of shared memory per rank.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}

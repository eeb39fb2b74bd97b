"""How many ranks a plain `deepspeed` command starts on a machine without accelerators: two.

There, DeepSpeed starts one rank per NUMA node, on most machines one in all: no expert parallelism, no sharding. Where
the command names no number, that one rank becomes the launcher of two. It keeps its process id, so that signals and exit
codes pass through as before.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from contextlib import suppress

import psutil

from pipeline.core.log import log
from pipeline.distributed.launcher_env import deepspeed_options

RANKS = 2


def launch_default_ranks() -> None:
    """Starts RANKS ranks in place of this process if it is the only one of a plain `deepspeed` on a machine of CPUs.

    Otherwise (another launcher, a number on the command line, a GPU, ranks that were started here) it returns. To be
    called before torch is imported.
    """
    if os.environ.get("WORLD_SIZE") != "1":
        return
    with suppress(psutil.Error):  # processes of other users may be hidden
        parents = [process.cmdline() for process in psutil.Process().parents()]
        command = relaunch_command(parents)
        if command and not _has_accelerator():
            log.info(f"no accelerator: {RANKS} ranks on the CPU (deepspeed --num_gpus N sets another number)")
            os.execv(command[0], command)


def relaunch_command(parents: Sequence[Sequence[str]]) -> list[str]:
    """The node launcher's own command line with RANKS in place of one rank; [] where the number was asked for.

    Args:
        parents: command lines of the processes above this one, the nearest first: the node launcher
            (`python -m deepspeed.launcher.launch`), then `deepspeed`.
    """
    if len(parents) < 2 or "deepspeed.launcher.launch" not in parents[0] or _names_ranks(parents[1]):
        return []
    worlds = [i for i, word in enumerate(parents[0]) if word.startswith("--world_info=")]
    if not worlds or _decode(parents[0][worlds[0]]) != {"localhost": [0]}:  # of a hostfile: its number counts
        return []
    words = list(parents[0])
    words[worlds[0]] = _encode({"localhost": list(range(RANKS))})
    if "--save_pid" in words:  # the outer launcher's
        del words[(at := words.index("--save_pid")) : at + 2]
    return words


def _names_ranks(command: Sequence[str]) -> bool:
    """Whether a `deepspeed` command says how many ranks it wants, or where. True for any other command."""
    options = deepspeed_options(command)
    return options is None or any(value is not None for value in vars(options).values())


def _has_accelerator() -> bool:
    if os.environ.get("DS_ACCELERATOR"):
        return os.environ["DS_ACCELERATOR"] != "cpu"
    import torch

    return torch.accelerator.is_available()


def _decode(word: str) -> dict[str, list[int]]:
    return json.loads(base64.urlsafe_b64decode(word.partition("=")[2]))


def _encode(world: dict[str, list[int]]) -> str:
    return "--world_info=" + base64.urlsafe_b64encode(json.dumps(world).encode()).decode()

"""ZeRO-3: which bytes of the student lie where, and what its collectives send.

Sizes are in elements until they are named bytes. The rules are those of runtime/zero/stage3.py and
partitioned_param_coordinator.py of DeepSpeed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.capacity.zero import MASTER, MOMENTS, Shards, ZeroSettings
from pipeline.training.step import StudentWithLoss


def shards(module: StudentWithLoss, settings: ZeroSettings, ranks: int, micro_steps: int) -> Shards:
    """Works on parameters without memory."""
    element = settings.element
    sizes = [parameter.numel() for parameter in module.model.parameters()]
    total, shard = sum(sizes), sum(math.ceil(size / ranks) for size in sizes)
    persistent = sum(size for size in sizes if size < settings.persistent)
    most_whole, gathers = gathered_elements(_parameters_in_order(module), settings)
    in_flight = min(settings.prefetch, total - most_whole)
    gathered = persistent + most_whole + 2 * in_flight  # prefetched tensors are copied out of one flat buffer
    master = 0 if element == MASTER else MASTER  # float32 weights are their own master copy
    host = element * shard if settings.offload_parameters else 0
    if settings.offload_optimizer:
        # gradients twice: as they come and in float32
        host += (settings.accumulation + MASTER + MASTER + MOMENTS) * shard
    on_gpu = 0 if settings.offload_optimizer else 1
    return Shards(
        parameters=0 if settings.offload_parameters else element * shard,
        gradients=on_gpu * settings.accumulation * shard,
        bucket=settings.communication * settings.reduce_bucket,
        optimizer=on_gpu * (master + MOMENTS) * shard,
        gathered=0 if ranks == 1 else element * gathered,  # one rank works on its shard, which is everything
        reducing=settings.communication * min(total, max(settings.reduce_bucket, max(sizes))),
        stepping=on_gpu * 2 * MASTER * shard,
        host=host,
        exchanged={  # small parameters are not given up: gathered once per optimizer step
            "all-gather: student's parameters": element * (micro_steps * gathers + persistent),
            "reduce-scatter: student's gradients": micro_steps * settings.communication * total,
        },
    )


def _parameters_in_order(module: StudentWithLoss) -> list[dict[int, int]]:
    """Parameters that each module of the forward has for itself, in order: {parameter: elements}."""
    unused = module.model.get_output_embeddings()  # the head runs as module.head, around the same weight
    modules = [part for part in module.modules() if part is not unused]
    sizes = [{id(p): p.numel() for p in part.parameters(recurse=False)} for part in modules]
    return [parameters for parameters in sizes if parameters]


def gathered_elements(order: Sequence[dict[int, int]], settings: ZeroSettings) -> tuple[int, int]:
    """Most elements that are whole at once, and elements gathered, over a forward and a backward.

    After a module, its parameters are given up unless one of the next modules, up to `reuse_distance` elements away,
    needs them again.
    """
    trace = [*order, *reversed(order)]
    trace = [{p: n for p, n in parameters.items() if n >= settings.persistent} for parameters in trace]
    whole: dict[int, int] = {}
    most = gathered = 0
    for index, parameters in enumerate(trace):
        gathered += sum(n for p, n in parameters.items() if p not in whole)
        whole |= parameters
        most = max(most, sum(whole.values()))
        soon: set[int] = set()
        distance = 0
        for later in trace[index + 1 :]:
            if distance >= settings.reuse_distance:
                break
            soon |= later.keys()
            distance += sum(later.values())
        whole = {p: n for p, n in whole.items() if p not in parameters or p in soon}
    return most, gathered

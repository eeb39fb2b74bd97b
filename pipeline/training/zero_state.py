"""The student's training state by parameter name: the same files whatever the ranks and the ZeRO stage.

A checkpoint's state/ holds safetensors, one file per rank. Of each parameter: `weight.NAME` (float32 master copy),
`exp_avg.NAME`, `exp_avg_sq.NAME`; besides, `buffer.NAME` and `metrics.RANK`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.core.errors import BadInput
from pipeline.data.order import balance

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's; its step count is the checkpoint's step."""


def collect(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """This rank's share of the state, on the CPU: whole tensors, shares of similar size. Collective."""
    parameters = dict(engine.module.model.named_parameters())
    sizes = [getattr(p, "ds_shape", p.shape).numel() for p in parameters.values()]  # under ZeRO-3 a parameter is empty
    kept = set(balance(sizes, dist.get_world_size())[dist.get_rank()])
    state = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        for kind in ("weight", *MOMENTS):
            whole = _get(engine, parameter, kind)
            if number in kept:
                state[f"{kind}.{name}"] = whole.detach().cpu().clone()
    if dist.get_rank() == 0:
        state |= {f"buffer.{n}": b.detach().cpu().clone() for n, b in buffers(engine.module.model).items()}
    return state


def restore(engine: DeepSpeedEngine, folder: Path, step: int) -> list[Tensor]:
    """Puts a saved state into an engine whose optimizer has stepped once. Returns every saving rank's metrics. Collective.

    Raises BadInput for a folder that does not hold this student's state.
    """
    files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
    file_of = {name: file for file in files for name in file.keys()}

    def saved(name: str) -> Tensor:
        if name not in file_of:
            raise BadInput(f"{folder} lacks {name}: it is another model's or another version's; start another run")
        return file_of[name].get_tensor(name)

    for name, parameter in engine.module.model.named_parameters():
        weight = saved(f"weight.{name}")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
        _set(engine, parameter, "weight", weight)
        for kind in MOMENTS:
            _set(engine, parameter, kind, saved(f"{kind}.{name}"))
    for name, buffer in buffers(engine.module.model).items():
        buffer.copy_(saved(f"buffer.{name}"))
    for moments in engine.basic_optimizer.state.values():
        moments["step"].fill_(step)
    return [saved(f"metrics.{rank}") for rank in range(len(files))]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that a checkpoint holds, by name."""
    persistent = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def _get(engine: DeepSpeedEngine, parameter: Any, kind: str) -> Tensor:
    """A parameter's whole master weight or moment. Collective."""
    if engine.zero_optimization_stage() == 0:
        return parameter if kind == "weight" else engine.optimizer.state[parameter][kind]
    if kind == "weight":
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, kind)


def _set(engine: DeepSpeedEngine, parameter: Any, kind: str, value: Tensor) -> None:
    """Sets a parameter's master weight or moment from the whole tensor; every rank keeps what is its own."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        if kind != "weight":  # without ZeRO the parameter is the master
            engine.optimizer.state[parameter][kind].copy_(value)
        return
    weight, moment = safe_set_full_fp32_param, safe_set_full_optimizer_state
    if stage == 3:  # DeepSpeed 0.19's setters of whole tensors fail where the last partition is padded
        weight, moment = safe_set_local_fp32_param, safe_set_local_optimizer_state
        size = parameter.ds_tensor.numel()
        start = size * dist.get_rank()
        partition = value.flatten()[start : start + size]
        value = torch.cat([partition, partition.new_zeros(size - partition.numel())])
    weight(parameter, value) if kind == "weight" else moment(parameter, value, kind)

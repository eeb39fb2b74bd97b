"""The training step of a published recipe at full size, as one rank of many: DeepSpeed's ZeRO-3 engine and AutoEP themselves,
on fake tensors and a fake process group. `python -m tests.distributed.full_size RECIPE ENGINE WORLD RANK OUTPUT`.

A fake tensor has no values: whatever reads one on the host raises here. The places where DeepSpeed has to are replaced below,
and counted. Writes what two optimizer steps did: memory, collectives, host reads, dtypes, operations.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from transformers import PreTrainedConfig

    from pipeline.capacity.planned_run import PlannedRun

GPUS_PER_NODE = 8
COLLECTIVES = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "all_reduce", "broadcast")


class Observed:
    """Collectives as (name, bytes, ranks), and reads of tensors by the host, since the last `take`."""

    def __init__(self) -> None:
        self.routed = 0
        """Tokens times experts per token of the forward that runs: AutoEP asks the device"""
        self.collectives: list[tuple[str, int, int]] = []
        self.host_reads: Counter[str] = Counter()

    def record(self, name: str) -> None:
        """Records a collective of torch.distributed from here on."""
        original = getattr(dist, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            ranks = dist.get_world_size(kwargs.get("group"))
            self.collectives.append((name, max(x.nbytes for x in tensors), ranks))
            return original(*args, **kwargs)

        setattr(dist, name, recorded)

    def read_by_host(self, name: str, answer: Callable) -> Callable:
        """`answer` in place of a function that reads a tensor's values."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.host_reads[name] += 1
            return answer(*args, **kwargs)

        return counted

    def take(self) -> dict[str, Any]:
        taken = {"collectives": self.collectives, "host_reads": dict(self.host_reads)}
        self.collectives, self.host_reads = [], Counter()
        return taken


def replace_data_dependent(observed: Observed) -> None:
    """What DeepSpeed reads from tensors: the norm's finiteness once per step, and each MoE layer's counts of tokens."""
    from deepspeed.module_inject import auto_ep_config, auto_ep_layer
    from deepspeed.moe import ep_kernels
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import stage3, utils

    for module in (stage3, bf16_optimizer):  # ZeRO-3's, and what runs ZeRO-1
        module.is_invalid_grad_norm = observed.read_by_host("gradient norm", lambda norm: False)
    # ZeRO-1's asks the host whether to clip at all
    bf16_optimizer.clip_tensors_by_global_norm = observed.read_by_host("clipping", clip)
    # while the order of modules is learnt, ranks compare theirs; a fake process group brings nothing from rank 0
    utils.get_lst_from_rank0 = lambda values: values
    utils.assert_lst_len_same_as_other_ranks = lambda values: None

    def balanced(counts: Tensor, size: int, local: int, group: Any) -> Any:
        """As many tokens for every rank."""
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts, group=group)
        rows = [observed.routed // size] * size
        rows[-1] += observed.routed - sum(rows)
        return auto_ep_layer.SplitPlan(rows, rows, received.view(size, local))

    auto_ep_layer._split_plan_from_expert_counts = observed.read_by_host("tokens per expert", balanced)
    # on CUDA a kernel does this
    ep_kernels.fill_indices_cpu = lambda *args: torch.empty(args[-1], dtype=torch.int32)
    parse = auto_ep_config.parse_autoep_config
    auto_ep_config.parse_autoep_config = lambda settings: parse({**settings, "use_grouped_mm": True})  # as on CUDA


def clip(input_tensors: Sequence[Tensor], max_norm: float, global_norm: Tensor, mpu: object) -> None:
    """As DeepSpeed does where the norm is above the most."""
    for tensor in input_tensors:
        tensor.detach().mul_(max_norm / (global_norm + 1e-6))


def to_empty(module: nn.Module, *, device: Any, recurse: bool = True) -> nn.Module:
    """torch's swaps tensors' contents, which a fake tensor and one on the meta device do not allow."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
                empty.__dict__.update({k: v for k, v in parameter.__dict__.items() if k not in empty.__dict__})
                part._parameters[name] = empty
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=device)
    return module


def main(recipe_name: str, engine_file: Path, world: int, rank: int, output: Path) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_RANK": str(rank % GPUS_PER_NODE), "LOCAL_WORLD_SIZE": str(GPUS_PER_NODE)}
    os.environ |= {"LOCAL_SIZE": str(GPUS_PER_NODE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    observed = Observed()
    for name in COLLECTIVES:
        observed.record(name)
    import deepspeed

    from pipeline.distributed.launcher_env import spare_inference_op

    spare_inference_op()
    replace_data_dependent(observed)
    deepspeed.init_distributed(verbose=False)

    from pipeline.capacity.inputs import read_configs, read_data
    from pipeline.capacity.planned_run import plan_run
    from pipeline.config.cli import parse, parser
    from pipeline.training.engine import read_engine_config

    recipe, _ = parse(parser(""), ["--recipe", recipe_name, "--data.aligned", "nowhere"])
    student, teachers = read_configs(recipe, [])
    data, engine = read_data(recipe, None, None), read_engine_config(engine_file)
    run = plan_run(recipe, engine, (student, teachers), data, world // GPUS_PER_NODE, GPUS_PER_NODE)
    configs = [student, *teachers.values()]
    result = {"planned": planned_bytes(run, configs, world), **observe_steps(run, configs, observed)}
    output.write_text(json.dumps(result))


def planned_bytes(run: PlannedRun, configs: Sequence[PreTrainedConfig], world: int) -> int:
    """What `plan` says of one GPU."""
    from pipeline.capacity.fake_step import FakeStep
    from pipeline.capacity.memory import gpu_memory
    from pipeline.capacity.zero import read_settings

    step = FakeStep(run, configs[0], configs[1:])
    shards = step.shards(read_settings(run.plan.engine_config, "the engine"), world)
    return gpu_memory(run, step, shards, step.trace(run.rows, False)).total


def load_teacher(config: PreTrainedConfig, dtype: torch.dtype, expert_parallel_size: int) -> nn.Module:
    """As `pipeline.models.loading.load_teacher`, without values."""
    from pipeline.models.expert_parallel import split_experts
    from pipeline.models.loading import build

    if expert_parallel_size == 1:
        return build(config, dtype=dtype, device="cpu").requires_grad_(False).eval()
    with unset_fake_temporarily():
        model = build(config, dtype=dtype, device="meta")
    split_experts(model, size=expert_parallel_size, device="cpu")
    return model.requires_grad_(False).eval()


def observe_steps(run: PlannedRun, configs: Sequence[PreTrainedConfig], observed: Observed) -> dict[str, Any]:
    """Two optimizer steps of one micro-batch each: what every phase holds at most, collectives, host reads, operations."""
    from pipeline.capacity.cuda_kernels import count_norms_as_kernels, kernels_as_on
    from pipeline.capacity.memory_tracker import MemoryTracker
    from pipeline.models.flex_attention import use_flex
    from pipeline.models.loading import build
    from pipeline.training.build import student_with_loss
    from pipeline.training.engine import build_engine, student_dtype

    plan, rows = run.plan, run.full_batch(run.rows)
    nn.Module.to_empty = to_empty
    nn.Module.to = lambda self, *args, **kwargs: self
    with kernels_as_on("cuda"), FakeTensorMode(allow_non_fake_inputs=True) as mode, MemoryTracker() as tracker:
        model = build(configs[0], dtype=student_dtype(plan.engine_config), device="cpu").train()
        teachers = [
            load_teacher(config, getattr(torch, teacher.dtype), plan.expert_parallel_size[teacher.name])
            for config, teacher in zip(configs[1:], plan.recipe.teachers, strict=True)
        ]
        for part in (model, *teachers):
            count_norms_as_kernels(part)
            use_flex(part)  # the default on a GPU
        module = student_with_loss(plan, model, teachers)
        engine = build_engine(module, plan.engine_config, plan.recipe.optim, accumulation=1)
        batch = rows.map(mode.from_tensor)
        observed.take()
        steps = []
        for _ in range(2):
            before, outputs, peaks = tracker.operations, [], {}
            for term, teacher, teacher_batch in zip(module.terms, teachers, batch.teachers, strict=True):
                per_token = getattr(teacher.config, "num_experts_per_tok", 0)
                observed.routed = teacher_batch.input.ids.numel() * per_token
                tracker.reset_peak()
                outputs.append(term.teacher_forward(teacher, teacher_batch))
                peaks[f"teacher {term.name}: forward"] = tracker.peak
            tracker.reset_peak()
            engine.backward(engine(batch, outputs, 0.5).sum())
            peaks["student: forward and backward"] = tracker.peak
            tracker.reset_peak()
            engine.step()
            peaks["student: optimizer step"] = tracker.peak
            steps.append({"peaks": peaks, "operations": tracker.operations - before, **observed.take()})
        return {"steps": steps, "dtypes": dtypes(model, teachers, engine)}


def dtypes(model: nn.Module, teachers: Sequence[nn.Module], engine: DeepSpeedEngine) -> dict[str, list[str]]:
    """Of every group of tensors."""
    zero = engine.optimizer
    moments = [tensor for state in zero.optimizer.state.values() for key, tensor in state.items() if key != "step"]
    groups = {
        "student": [parameter.dtype for parameter in model.parameters()],
        "teachers": [parameter.dtype for teacher in teachers for parameter in teacher.parameters()],
        "master": [tensor.dtype for tensor in zero.optimizer.state],  # which its moments are kept by
        "optimizer": [tensor.dtype for tensor in moments],
        "communication": [engine.communication_data_type],
        "accumulation": [engine.get_data_types()[1]],
    }
    return {name: sorted({str(dtype) for dtype in values}) for name, values in groups.items()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))

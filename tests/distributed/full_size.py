"""The training step of a published recipe at full size, as one rank of many: DeepSpeed's ZeRO-3 engine and AutoEP themselves,
on fake tensors and a fake process group. `python -m tests.distributed.full_size RECIPE WORLD RANK OUTPUT`.

A fake tensor has no values: whatever reads one on the host raises here. The places where DeepSpeed has to are replaced below,
and counted. Writes what two optimizer steps did: memory, collectives, host reads, dtypes, operations.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

GPUS_PER_NODE = 8
COLLECTIVES = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single", "all_reduce", "broadcast")


class Observed:
    """Collectives as (name, bytes, ranks), and reads of tensors by the host, since the last `take`."""

    def __init__(self) -> None:
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
    from deepspeed.runtime.zero import stage3, utils

    stage3.is_invalid_grad_norm = observed.read_by_host("gradient norm", lambda norm: False)
    # while the order of modules is learnt, ranks compare theirs; a fake process group brings nothing from rank 0
    utils.get_lst_from_rank0 = lambda values: values
    utils.assert_lst_len_same_as_other_ranks = lambda values: None

    def balanced(counts: Tensor, size: int, local: int, group: Any) -> Any:
        """As many tokens for every rank; `balanced.rows` is set to the tokens' number times experts per token."""
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts, group=group)
        rows = [balanced.rows // size] * size
        rows[-1] += balanced.rows - sum(rows)
        return auto_ep_layer.SplitPlan(rows, rows, received.view(size, local))

    auto_ep_layer._split_plan_from_expert_counts = observed.read_by_host("tokens per expert", balanced)
    observed.balanced = balanced
    # on CUDA a kernel does this
    ep_kernels.fill_indices_cpu = lambda *args: torch.empty(args[-1], dtype=torch.int32)
    parse = auto_ep_config.parse_autoep_config
    auto_ep_config.parse_autoep_config = lambda settings: parse({**settings, "use_grouped_mm": True})  # as on CUDA


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


def main(recipe_name: str, world: int, rank: int, output: Path) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_RANK": str(rank % GPUS_PER_NODE), "LOCAL_WORLD_SIZE": str(GPUS_PER_NODE)}
    os.environ |= {"LOCAL_SIZE": str(GPUS_PER_NODE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    observed = Observed()
    for name in COLLECTIVES:
        observed.record(name)
    import deepspeed

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    replace_data_dependent(observed)
    deepspeed.init_distributed(verbose=False)

    from pipeline.capacity.fake_step import FakeStep
    from pipeline.capacity.inputs import read_configs, read_data
    from pipeline.capacity.memory import gpu_memory
    from pipeline.capacity.memory_tracker import MemoryTracker
    from pipeline.capacity.planned_run import plan_run
    from pipeline.capacity.zero3 import read_settings
    from pipeline.config.cli import parse, parser
    from pipeline.method.chunked_lm_head import chunks_as_on
    from pipeline.models.expert_parallel import split_experts
    from pipeline.models.loading import build
    from pipeline.training.build import student_with_loss
    from pipeline.training.engine import build_engine, read_engine_config, student_dtype

    recipe, _ = parse(parser(""), ["--recipe", recipe_name, "--data.aligned", "nowhere"])
    engine_file = "ds_configs/zero3_bf16.json"
    settings = read_engine_config(Path(engine_file))
    (student_config, teacher_configs), data = read_configs(recipe, []), read_data(recipe, None, None)
    run = plan_run(recipe, settings, (student_config, teacher_configs), data, world // GPUS_PER_NODE, GPUS_PER_NODE)
    fake_step = FakeStep(run, student_config, list(teacher_configs.values()), "cuda")
    shards = fake_step.shards(read_settings(settings, engine_file), world)
    predicted = gpu_memory(run, fake_step, shards, fake_step.trace(run.rows, False))
    result: dict[str, Any] = {"planned": predicted.total, "planned_parts": predicted.always | predicted.phases}

    rows = run.full_batch(run.rows)
    nn.Module.to_empty = to_empty
    nn.Module.to = lambda self, *args, **kwargs: self
    with chunks_as_on("cuda"), FakeTensorMode(allow_non_fake_inputs=True) as mode, MemoryTracker() as tracker:
        model = build(student_config, dtype=student_dtype(settings), device="cpu").train()
        teachers = []
        for teacher in recipe.teachers:
            config, dtype = teacher_configs[teacher.name], getattr(torch, teacher.dtype)
            size = run.plan.expert_parallel_size[teacher.name]
            if size > 1:
                with unset_fake_temporarily():
                    loaded = build(config, dtype=dtype, device="meta")
                split_experts(loaded, size=size, device="cpu")
            else:
                loaded = build(config, dtype=dtype, device="cpu")
            teachers.append(loaded.requires_grad_(False).eval())
        module = student_with_loss(run.plan, model, teachers)
        engine = build_engine(module, settings, recipe.optim, accumulation=1)
        batch = rows.map(mode.from_tensor)
        observed.take()
        steps = []
        for _ in range(2):
            peaks = {}
            outputs = []
            for term, teacher, teacher_batch in zip(module.terms, teachers, batch.teachers, strict=True):
                observed.balanced.rows = teacher_batch.input.ids.numel() * getattr(
                    teacher.config, "num_experts_per_tok", 0
                )
                tracker.reset_peak()
                outputs.append(term.teacher_forward(teacher, teacher_batch))
                peaks[f"teacher {term.name}: forward"] = tracker.peak
            tracker.reset_peak()
            sums = engine(batch, outputs, 0.5)
            engine.backward(sums.sum())
            peaks["student: forward and backward"] = tracker.peak
            tracker.reset_peak()
            engine.step()
            peaks["student: optimizer step"] = tracker.peak
            del sums, outputs
            steps.append({"peaks": peaks, **observed.take()})
        dtypes = {
            "student": {str(p.dtype) for p in model.parameters()},
            "teachers": {str(p.dtype) for t in teachers for name, p in t.named_parameters()},
            "master": {str(p.dtype) for p in engine.optimizer.fp32_partitioned_groups_flat},
            "optimizer": {
                str(v.dtype) for s in engine.optimizer.optimizer.state.values() for k, v in s.items() if k != "step"
            },
            "communication": {str(engine.communication_data_type)},
            "accumulation": {str(engine.optimizer.gradient_accumulation_dtype)},
        }
    result |= {"steps": steps, "dtypes": {name: sorted(values) for name, values in dtypes.items()}}
    output.write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

"""Run under torchrun: experts shared out over ranks must give what one rank with all experts gives.

Arguments: the checkpoint's folder, then the expert-parallel sizes. Ranks see very different numbers of tokens, all but the
first once only padding, once no row.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.module_inject.auto_ep import AutoEP
from safetensors import safe_open

from pipeline.core.errors import BadInput
from pipeline.distributed.topology import start
from pipeline.models import expert_parallel, loading, weights
from pipeline.models.families.llada2_moe_layers import Gate
from pipeline.models.loading import load_student, load_teacher

folder, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
start(timedelta(minutes=5))
rank, world = dist.get_rank(), dist.get_world_size()
EXPERTS = 16


def teacher(size: int, dtype: torch.dtype = torch.float32, **options):
    return load_teacher(folder, dtype=dtype, device="cpu", expert_parallel_size=size, **options)


def batch(lengths: list[int], longest: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 500, (len(lengths), longest), generator=generator)
    return {"input_ids": ids, "attention_mask": (real[:, None, :, None] & real[:, None, None, :])}


def compare(size: int, dtype: torch.dtype, tolerance: float, **options) -> None:
    whole, shared = teacher(1, dtype, **options), teacher(size, dtype, **options)
    count = EXPERTS // size
    first = rank % size * count
    assert not any(p.requires_grad for p in shared.parameters())
    for i in (1, 2):
        ours, theirs = (m.model.layers[i].mlp for m in (whole, shared))
        assert theirs.experts.w1.shape[0] == count
        assert theirs.router.gate.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(ours.gate.e_score_correction_bias, theirs.router.gate.e_score_correction_bias)
        assert torch.equal(ours.experts.gate_up_proj[first : first + count].chunk(2, dim=1)[1], theirs.experts.w3)
    for lengths in ([20, 14], [37] * 3 if rank == 0 else [1], [9 if rank == 0 else 0], [5] if rank == 0 else []):
        inputs = batch(lengths, max(lengths, default=5) or 9)
        with torch.no_grad():
            expected, given = whole(**inputs).logits, shared(**inputs).logits
        assert given.shape == expected.shape and given.isfinite().all()
        difference = (given - expected).norm().item() / max(expected.norm().item(), 1)
        assert difference <= tolerance, (size, dtype, lengths, difference)


def opened_experts(size: int) -> set[int]:
    """The experts that loading reads."""
    read = []

    class Recording:
        def __init__(self, *arguments, **options):
            self.tensors = safe_open(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __getattr__(self, name):
            return getattr(self.tensors, name)

        def get_tensor(self, name):
            read.append(name)
            return self.tensors.get_tensor(name)

    with mock.patch.object(weights, "safe_open", Recording):
        teacher(size)
    return {int(name.split(".experts.")[1].split(".")[0]) for name in read if ".experts." in name}


def refused(size: int, message: str) -> None:
    try:
        teacher(size)
    except BadInput as error:
        assert message in str(error) and "\n" not in str(error), error
    else:
        raise AssertionError(f"loaded, instead of: {message}")


class Forgetful(expert_parallel.Router):
    """What AutoEP makes of a bias whose name it does not know."""

    def __init__(self, gate: Gate):
        super().__init__(gate)
        del gate.e_score_correction_bias
        gate.register_buffer("e_score_correction_bias", torch.zeros(EXPERTS), persistent=False)


def all_but_one(auto_ep, specs, **options):
    return replace_moe_layers(auto_ep, specs[:-1], **options)


def fill_without_bias(folder: Path, views, **options) -> None:
    fill(folder, {name: view for name, view in views.items() if not name.endswith("layers.2.mlp.gate.expert_bias")})


replace_moe_layers, fill = AutoEP.replace_moe_layers, loading.fill

for size in sizes:
    compare(size, torch.float32, 1e-6)
    compare(size, torch.bfloat16, 2e-2)
    compare(size, torch.float32, 1e-6, weights="random", seed=3)
    first = rank % size * (EXPERTS // size)
    assert opened_experts(size) == set(range(first, first + EXPERTS // size))

    # A load that lost anything refuses to run.
    with mock.patch.object(expert_parallel, "Router", Forgetful):
        refused(size, "AutoEP lost or changed model.layers.1.mlp.gate.expert_bias")
    with mock.patch.object(AutoEP, "replace_moe_layers", all_but_one):
        refused(size, "AutoEP lost or changed model.layers.2.mlp.experts.")
    with mock.patch.object(loading, "fill", fill_without_bias):
        refused(size, "model.layers.2.mlp.gate.expert_bias differs from the file after loading")

refused(3, f"expert_parallel_size 3 must divide the ranks ({world})")

# Balancing looks at the tokens of all ranks.
student, reference = (load_student(folder, dtype=torch.float32, weights="random") for _ in range(2))
seen = [torch.randint(1, 500, (1, 30), generator=torch.Generator().manual_seed(r)) for r in range(world)]
everything = torch.ones(1, 1, 30, 30, dtype=torch.bool)
student(seen[rank], attention_mask=everything)
for ids in seen:
    reference(ids, attention_mask=everything)
for model in (student, reference):
    model.update_selection_bias(0.5)
for ours, theirs in zip(student.buffers(), reference.buffers(), strict=True):
    assert torch.equal(ours, theirs)
print(f"rank {rank} done", flush=True)
dist.barrier()

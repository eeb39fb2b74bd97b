"""Run under torchrun on two ranks: experts shared out over both must give what one rank with all experts gives.

Argument: the checkpoint's folder. Ranks see very different numbers of tokens, rank 1 once only padding, once no row.
"""

from __future__ import annotations

import sys

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open

from pipeline.models import load_student, load_teacher
from pipeline.models import weights as weights_module
from pipeline.recipe import BadInput

folder = sys.argv[1]
deepspeed.init_distributed(dist_backend="gloo")
rank = dist.get_rank()


def batch(lengths: list[int], longest: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 500, (len(lengths), longest), generator=generator)
    return {"input_ids": ids, "attention_mask": (real[:, None, :, None] & real[:, None, None, :])}


def compare(dtype: torch.dtype, tolerance: float, **options) -> None:
    whole = load_teacher(folder, dtype=dtype, device="cpu", **options)
    shared = load_teacher(folder, dtype=dtype, device="cpu", expert_parallel_size=2, **options)
    layer = shared.model.layers[1].mlp
    assert layer.experts.w1.shape[0] == 8, "each rank holds half of the 16 experts"
    assert not any(p.requires_grad for p in shared.parameters())
    for i in (1, 2):
        ours, theirs = (m.model.layers[i].mlp for m in (whole, shared))
        assert theirs.router.gate.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(ours.gate.e_score_correction_bias, theirs.router.gate.e_score_correction_bias)
        held = slice(8 * rank, 8 * rank + 8)
        assert torch.equal(ours.experts.gate_up_proj[held].chunk(2, dim=1)[1], theirs.experts.w3)
    of_ranks = [([20, 14], [20, 14]), ([37] * 3, [1]), ([9], [0]), ([5], [])]
    for lengths in (case[rank] for case in of_ranks):
        inputs = batch(lengths, max(lengths, default=5) or 9)
        with torch.no_grad():
            expected, given = whole(**inputs).logits, shared(**inputs).logits
        assert given.shape == expected.shape and given.isfinite().all()
        difference = (given - expected).norm().item() / max(expected.norm().item(), 1)
        assert difference <= tolerance, (dtype, lengths, difference)


compare(torch.float32, 1e-6)
compare(torch.bfloat16, 2e-2)
compare(torch.float32, 1e-6, weights="random", seed=3)

# A rank opens only its experts.
read = []


def recording_open(*arguments, **options):
    tensors = safe_open(*arguments, **options)
    return type("Recording", (), {
        "__enter__": lambda self: self,
        "__exit__": lambda self, *_: None,
        "keys": lambda self: tensors.keys(),
        "get_slice": lambda self, name: tensors.get_slice(name),
        "get_tensor": lambda self, name: read.append(name) or tensors.get_tensor(name),
    })()  # fmt: skip


weights_module.safe_open = recording_open
load_teacher(folder, dtype=torch.float32, device="cpu", expert_parallel_size=2)
experts = {int(name.split(".experts.")[1].split(".")[0]) for name in read if ".experts." in name}
assert experts == set(range(8 * rank, 8 * rank + 8)), experts

try:
    load_teacher(folder, dtype=torch.float32, device="cpu", expert_parallel_size=3)
    raise AssertionError("size 3 was accepted")
except BadInput as error:
    assert "expert_parallel_size 3 must divide the ranks (2)" in str(error)
# Balancing looks at the tokens of all ranks.
student, reference = (load_student(folder, dtype=torch.float32, weights="random") for _ in range(2))
seen = [torch.randint(1, 500, (1, 30), generator=torch.Generator().manual_seed(r)) for r in range(2)]
everything = torch.ones(1, 1, 30, 30, dtype=torch.bool)
student(seen[rank], attention_mask=everything)
for ids in seen:
    reference(ids, attention_mask=everything)
for model in (student, reference):
    model.update_selection_bias(0.5)
for ours, theirs in zip(student.buffers(), reference.buffers(), strict=True):
    assert torch.equal(ours, theirs)
print(f"rank {rank} done", flush=True)

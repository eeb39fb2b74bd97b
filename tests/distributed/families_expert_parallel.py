"""Run under torchrun: Qwen3-MoE's families with their experts on two ranks give what one rank with all of them gives: logits, and
the gradients of a student that learns from them. Arguments: FOLDER:INPUT of each teacher."""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.module_inject.auto_ep import AutoEP
from transformers import AutoModelForCausalLM, Qwen3Config

from pipeline.core.errors import BadInput
from pipeline.distributed.topology import start
from pipeline.method.kl import kl
from pipeline.models.loading import load_teacher

start(timedelta(minutes=5))
rank, world = dist.get_rank(), dist.get_world_size()
replace_moe_layers = AutoEP.replace_moe_layers


def student() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(Qwen3Config(**sizes, num_key_value_heads=1, head_dim=8, vocab_size=240))


for argument in sys.argv[1:]:
    folder, _, reads = argument.partition(":")
    load = partial(load_teacher, folder, dtype=torch.float32, device="cpu", causal=reads == "causal")
    whole, shared = load(expert_parallel_size=1), load(expert_parallel_size=world)
    experts = whole.model.layers[1].mlp.experts.gate_up_proj
    own = experts.chunk(world)[rank]
    assert torch.equal(own.chunk(2, 1)[0], shared.model.layers[1].mlp.experts.w1)
    for length in (20 if rank else 7, 1 if rank else 30):  # very unequal, and once a single token
        ids = torch.randint(1, 230, (2, length), generator=torch.Generator().manual_seed(rank))
        mask = torch.ones(2, 1, length, length, dtype=torch.bool)
        expected, given = (model(ids, attention_mask=mask).logits for model in (whole, shared))
        torch.testing.assert_close(given, expected, atol=2e-5, rtol=0)
        gradients = []
        for logits in (expected, given):
            learner = student()
            kl(learner(ids).logits.flatten(0, 1), logits.flatten(0, 1), temperature=2.0).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
        torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    with mock.patch.object(
        AutoEP, "replace_moe_layers", lambda ep, specs, **o: replace_moe_layers(ep, specs[:-1], **o)
    ):
        try:
            load(expert_parallel_size=world)
        except BadInput as error:
            assert "AutoEP lost or changed model.layers.1.mlp.experts." in str(error), error
        else:
            raise AssertionError("a layer that is not shared out was not missed")
    print(f"rank {rank}: {Path(folder).name} equal", flush=True)
dist.barrier()

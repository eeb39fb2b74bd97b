"""A look at every teacher before the first step: does it understand the tokens that it is about to teach?"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipeline.core.errors import BadInput
from pipeline.core.log import rank
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import BatchBuilder
from pipeline.models.forward import score_tokens
from pipeline.training.held_out import held_out_batches
from pipeline.training.loop import Trainer

ROWS = 64
TIMESTEP = 0.15
SHARE = 0.5


def check_teachers(trainer: Trainer) -> None:
    """Refuses a teacher that reads its own tokens hardly better than by guessing. Collective; every rank raises alike.

    Measured is the mean negative log-likelihood, in nats, of masked response tokens at t = 0.15 on 64 rows spread over the
    training data: the teacher's ids under its own input mask, one view, always the same noise. With so few tokens masked, a
    teacher that understands its input needs little more than the entropy of a word in its context, 1 or 2 nats in prose and
    less in code. Guessing costs ln(vocabulary), 12 nats for 150,000 tokens, and a teacher that sees another tokenizer's ids
    or has lost its weights needs more than that. The bound is half of it: what knows no more than how often each token
    occurs stays above (the demo's data: 0.62 of guessing), what understands its input far below (the demo's teacher: 0.11).

    A wrong template does less harm (0.42 there), and how much depends on the data: a teacher that needs more than half of
    the entropy of the token frequencies is warned of. Random weights are exempt. Raises BadInput naming teacher, value,
    bound and likely causes.
    """
    builder = BatchBuilder(trainer.builder.student, trainer.builder.teachers, blocks=trainer.builder.blocks)
    picked = trainer.rows.pick(np.unique(np.linspace(0, len(trainer.rows) - 1, ROWS).astype(int)))
    problems = []
    for k, (teacher, (_, model)) in enumerate(zip(trainer.recipe.teachers, trainer.teachers, strict=True)):
        if teacher.weights == "random":
            _say(f"teacher {teacher.name}: random weights, whose likelihood is not checked")
            continue
        nats, entropy = likelihood(model, k, picked, builder, trainer)
        guessing = math.log(model.get_output_embeddings().weight.shape[0])
        bound = guessing * SHARE
        _say(
            f"teacher {teacher.name}: {nats:.2f} nats a masked token of its own ids at t = {TIMESTEP} (bound {bound:.2f};"
            f" token frequencies alone give {entropy:.2f}, guessing {guessing:.2f})"
        )
        if not nats < bound:  # nor a nan
            problems.append(
                f"teacher {teacher.name} needs {nats:.2f} nats a masked token of its own ids, above {bound:.2f}"
            )
        elif nats > entropy * SHARE:
            _say(f"WARNING teacher {teacher.name} understands little of its input: check its chat template and `input`")
    if problems:
        raise BadInput(f"{'; '.join(problems)}: check its tokenizer, chat template, weights and `input`")


@torch.no_grad()
def likelihood(
    model: nn.Module, k: int, rows: AlignedRows, builder: BatchBuilder, trainer: Trainer
) -> tuple[float, float]:
    """Of teacher k's masked tokens on all ranks: mean negative log-likelihood, and entropy of their frequencies (nats)."""
    head, device = model.get_output_embeddings().weight, trainer.topology.device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(head.shape[0], dtype=torch.float64, device=device)
    for batch in held_out_batches(rows, builder, trainer.topology, trainer.recipe.optim.micro_tokens, TIMESTEP):
        teacher = batch.teachers[k]
        nats -= score_tokens(model, teacher.input, teacher.predict, teacher.targets).double().sum()
        counts += torch.bincount(teacher.targets, minlength=head.shape[0])
    dist.all_reduce(nats)
    dist.all_reduce(counts)
    return float(nats / counts.sum()), float(torch.special.entr(counts / counts.sum()).sum())


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)

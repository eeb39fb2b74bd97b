"""Before the first step: does every teacher understand the tokens that it is about to teach, and what does it know?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config.recipe import Teacher
from pipeline.core.errors import BadInput
from pipeline.core.log import log
from pipeline.core.terminal import by_timestep
from pipeline.data.batch import TeacherBatch
from pipeline.distributed.device_reads import read
from pipeline.models.forward import log_prob_and_hit, score_tokens
from pipeline.training.held_out import TIMESTEPS, FixedNoiseRows, by_time, means
from pipeline.training.teacher_probe import TeacherProbe

ROWS = 64
TIMESTEP = 0.15
SHARE = 0.5


def nats_bound(vocabulary: int) -> float:
    """Nats per token above which a teacher understands nothing: half of guessing."""
    return SHARE * math.log(vocabulary)


def check_teachers(teachers: Sequence[tuple[Teacher, PreTrainedModel | None]], rows: FixedNoiseRows) -> None:
    """Refuses a teacher that reads its own tokens hardly better than by guessing. Collective; every rank raises alike.

    Measured is the mean negative log-likelihood, in nats, of masked response tokens at t = 0.15 on 64 rows spread over the
    training data: the teacher's ids under its own input mask, one view, always the same noise. With so few tokens masked, a
    teacher that understands its input needs little more than the entropy of a word in its context, 1 or 2 nats in prose and
    less in code. Guessing costs ln(vocabulary), 12 nats for 150,000 tokens, and a teacher that sees another tokenizer's ids
    or has lost its weights needs more than that. The bound is half of guessing: a teacher that knows token frequencies
    alone stays above (demo's data: 0.62 of guessing), one that understands its input far below (demo's teacher: 0.11).

    A wrong template does less harm (0.42 there), and how much depends on the data: a teacher that needs more than half of
    the entropy of the token frequencies is warned of. Random weights are exempt.

    Args:
        rows: training rows with one view of every teacher.

    Raises BadInput naming teacher, value, bound and likely causes.
    """
    rows, problems = rows.spread(ROWS), []
    for k, (teacher, model) in enumerate(teachers):
        if model is None:
            continue  # precompute has checked its answers
        if teacher.weights == "random":
            log.info("teacher %s: random weights, whose likelihood is not checked", teacher.name)
            continue
        nats, entropy = likelihood(model, k, rows)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        guessing, bound = math.log(vocabulary), nats_bound(vocabulary)
        if not nats < bound:  # nor a nan
            problems.append(
                f"teacher {teacher.name} needs {nats:.2f} nats per masked token of its own ids, above {bound:.2f}"
            )
        elif nats > entropy * SHARE:
            log.warning(
                f"teacher {teacher.name} understands little of its input: {nats:.2f} nats/token, where token frequencies alone "
                f"give {entropy:.2f}: check its chat template and `input`"
            )
        else:
            log.info(f"teacher {teacher.name} understands its input: {nats:.2f} nats/token (guessing: {guessing:.2f})")
    if problems:
        raise BadInput(f"{'; '.join(problems)}: check its tokenizer, chat template, weights and `input`")


@torch.no_grad()
def likelihood(model: PreTrainedModel, k: int, rows: FixedNoiseRows) -> tuple[float, float]:
    """Of teacher k's masked tokens on all ranks: mean negative log-likelihood, and entropy of their frequencies (nats)."""
    device, vocabulary = rows.topology.device, model.get_output_embeddings().weight.shape[0]
    nats = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(vocabulary, dtype=torch.float64, device=device)
    for batch in rows.batches(TIMESTEP):
        teacher = batch.teachers[k]
        nats -= score_tokens(model, teacher.input, teacher.predict, teacher.targets).double().sum()
        counts += torch.bincount(teacher.targets, minlength=vocabulary)
    dist.all_reduce(nats)
    dist.all_reduce(counts)
    mean, entropy = read(torch.stack([nats / counts.sum(), torch.special.entr(counts / counts.sum()).sum()]))
    return mean, entropy


def probe_teacher(name: str, model: PreTrainedModel, k: int, views: Mapping[str, FixedNoiseRows]) -> TeacherProbe:
    """Measures teacher k on held-out rows and says what it knows. Collective.

    Args:
        views: the same rows, with one view of the teacher and with two.
    """
    probe = TeacherProbe(TIMESTEPS, -math.log(model.get_output_embeddings().weight.shape[0]), {}, {})
    for view, rows in views.items():
        known = means(rows, lambda batch, _t: _known(model, batch.teachers[k]), 2)
        probe.log_prob[view], probe.accuracy[view] = read(known[:, 0]), read(known[:, 1])
        log.info(f"teacher {name}, {view.replace('_', ' '):9}  right {by_timestep(by_time(known[:, 1]), '.0%')}")
    if max(probe.log_prob["one_view"]) < probe.uniform:
        log.warning(f"teacher {name} is worse than guessing: check its tokenizer, template, weights and input mask")
    return probe


def _known(model: PreTrainedModel, batch: TeacherBatch) -> Tensor:
    """Sums over predicted tokens: log-probability of the truth, right guesses, tokens: float64 [3]."""
    known = score_tokens(model, batch.input, batch.predict, batch.targets, log_prob_and_hit)
    return torch.cat([known.double().sum(0), known.new_tensor([known.shape[0]], dtype=torch.float64)])

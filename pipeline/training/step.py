"""The training step's mathematics: one student forward to the sums of every loss term."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.method.chunked_lm_head import head_rows, token_log_prob
from pipeline.models.forward import hidden_states
from pipeline.training.terms import Mix, Term


class LMHead(nn.Module):
    """The student's head as a module of its own, around the model's own (maybe tied) weight.

    ZeRO-3 gathers a module's parameters around its forward and its backward: the weight is gathered once for the whole
    chunked loop, and once more for its backward.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, function: Callable[..., Tensor], hidden: Tensor, *rows: Tensor) -> Tensor:
        return head_rows(function, hidden, self.weight, *rows)


class StudentWithLoss(nn.Module):
    """The student and its loss in one forward, as ZeRO-3 wants it."""

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[Term],
        cross_entropy_weight: Callable[[Tensor], Tensor],
        cross_entropy_mix: Mix | None = None,
    ):
        super().__init__()
        self.model = model
        self.head = LMHead(model.get_output_embeddings().weight)
        self.terms, self.cross_entropy_weight = tuple(terms), cross_entropy_weight
        self.cross_entropy_mix = cross_entropy_mix

    def forward(
        self, batch: Batch, observed: Sequence[Tensor], progress: float, terms: Sequence[Term] | None = None
    ) -> Tensor:
        """Sums over the micro-batch of the cross-entropy and of each teacher's term: float32 [1 + teachers].

        Args:
            observed: what each term observed of its teacher.
            progress: optimizer step / total steps.
            terms: others than its own, to measure.
        """
        hidden = hidden_states(self.model, batch.student, batch.predict)
        terms = terms or self.terms if batch.teachers else ()  # validation: the cross-entropy alone
        pairs = list(zip(terms, batch.teachers, observed, strict=True))
        inputs = [term.row_inputs(teacher, seen, batch.t, progress) for term, teacher, seen in pairs]
        rows = self.head(_row_function(terms, inputs), hidden, batch.targets, *(x for own in inputs for x in own))
        logp, values = rows[:, 0], iter(rows[:, 1:].unbind(1))
        weight = self.cross_entropy_weight(batch.t)
        if terms and self.cross_entropy_mix:
            weight = weight * self.cross_entropy_mix(progress, batch.t)
        sums = [-(weight * logp).sum()]
        for term, teacher, seen in pairs:
            row = next(values) if term.row else None
            sums.append(term.total(logp, row, teacher, seen, batch.t, progress))
        return torch.stack(sums)


def _row_function(terms: Sequence[Term], inputs: Sequence[tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """True token's log-probability, then each full-distribution term: logits [c, V], per-row inputs -> [c, 1 + terms]."""
    ends = list(itertools.accumulate((len(own) for own in inputs), initial=0))
    spans = [(term, slice(*span)) for term, span in zip(terms, itertools.pairwise(ends), strict=True) if term.row]

    def rows(logits: Tensor, targets: Tensor, *flat: Tensor) -> Tensor:
        values = [term.row(logits, *flat[span]) for term, span in spans]
        return torch.stack([token_log_prob(logits, targets), *values], 1)

    return rows


def counts(batch: Batch, terms: Sequence[Term]) -> Tensor:
    """Each term's share of its denominator: float64 [1 + teachers]. Known from the noise, before any forward."""
    own = [batch.maskable, *(term.count(teacher) for term, teacher in zip(terms, batch.teachers, strict=True))]
    return torch.tensor(own, dtype=torch.float64)


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, final: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then a cosine to `final` times the peak; step from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    share = (step - rising) / max(1, steps - rising)
    cosine = (1 + math.cos(math.pi * share)) / 2
    return peak * (final + (1 - final) * cosine)

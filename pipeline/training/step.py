"""The training step's mathematics: one student forward to the sums of every loss term."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.batch import Batch
from pipeline.method.chunked_lm_head import PerTokenLoss, chunked_lm_head, token_log_prob
from pipeline.method.tidal import mix_cross_entropy
from pipeline.models.forward import hidden_states
from pipeline.training.terms import Mix, Term

OwnLoss = Callable[[Tensor, Tensor], Tensor]
"""Of the student's distributions alone: logits [c, V], true tokens [c] -> [c]; its denominator is the masked tokens"""


class LMHead(nn.Module):
    """The student's head as a module of its own, around the model's own (maybe tied) weight.

    ZeRO-3 gathers a module's parameters around its forward and its backward: the weight is gathered once for the whole
    chunked loop, and once more for its backward.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, per_token_loss: PerTokenLoss, hidden: Tensor) -> Tensor:
        return chunked_lm_head(per_token_loss, hidden, self.weight)


class StudentWithLoss(nn.Module):
    """The student and its loss in one forward, as ZeRO-3 wants it."""

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[Term],
        cross_entropy_weight: Callable[[Tensor], Tensor],
        cross_entropy_mix: Mix | None = None,
        own_losses: Sequence[OwnLoss] = (),
    ):
        super().__init__()
        self.model = model
        self.head = LMHead(model.get_output_embeddings().weight)
        self.terms, self.cross_entropy_weight = tuple(terms), cross_entropy_weight
        self.cross_entropy_mix, self.own_losses = cross_entropy_mix, tuple(own_losses)

    def forward(
        self, batch: Batch, teacher_outputs: Sequence[Tensor], progress: float, terms: Sequence[Term] | None = None
    ) -> Tensor:
        """Sums over the micro-batch of the cross-entropy, of each teacher's term and, in training mode, of the student's own losses:
        float32 [1 + teachers + own losses].

        Args:
            teacher_outputs: of each term's `teacher_forward`.
            progress: optimizer step / total steps.
            terms: others than its own, to measure.
        """
        terms = terms or self.terms if batch.teachers else ()  # validation: the cross-entropy alone
        parts = zip(terms, batch.teachers, teacher_outputs, strict=True)
        signals = [term.signal(teacher, output, progress) for term, teacher, output in parts]

        own_losses = self.own_losses if self.training else ()

        def per_token(logits: Tensor, tokens: slice) -> Tensor:
            log_prob = token_log_prob(logits, batch.targets[tokens])
            taught = (signal.per_token(logits, log_prob, tokens) for signal in signals)
            return torch.stack([log_prob, *taught, *(loss(logits, batch.targets[tokens]) for loss in own_losses)], 1)

        hidden = hidden_states(self.model, batch.student, batch.predict)
        log_prob, *values = self.head(per_token, hidden).unbind(1)
        taught, own_values = values[: len(signals)], values[len(signals) :]
        weight = self.cross_entropy_weight(batch.t)
        if terms and self.cross_entropy_mix:
            weight = mix_cross_entropy(weight, self.cross_entropy_mix(progress, batch.t))
        losses = [signal.loss(value) for signal, value in zip(signals, taught, strict=True)]
        return torch.stack([-(weight * log_prob).sum(), *losses, *(value.sum() for value in own_values)])


def counts(batch: Batch, terms: Sequence[Term], own_losses: int = 0) -> Tensor:
    """Each term's share of its denominator: float64 [1 + teachers + own losses]. Known from the noise, before any forward."""
    taught = (term.count(teacher) for term, teacher in zip(terms, batch.teachers, strict=True))
    return torch.tensor([batch.maskable, *taught, *[len(batch.targets)] * own_losses], dtype=torch.float64)


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, final: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then a cosine to `final` times the peak; step from 0.

    The last step of the rise has the peak, the last step of all the final rate.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    share = (step + 1 - rising) / (steps - rising)
    cosine = (1 + math.cos(math.pi * share)) / 2
    return peak * (final + (1 - final) * cosine)

"""Certainty forcing (dParallel, arXiv 2509.26488): less entropy where the student is right already.

Decoding by a threshold decides a token once its probability is above it. The cross-entropy alone makes the truth likelier, but
leaves a student that has it right short of certain; this term goes on from there, so that more tokens are decided in a forward.
"""

from __future__ import annotations

import torch
from torch import Tensor


def certainty(logits: Tensor, tokens: Tensor, *, temperature: float) -> Tensor:
    """Entropy of softmax(logits / T) in nats where the truth is the likeliest token, 0 elsewhere: [c, V], int64 [c] -> [c].

    No T^2 factor, as published. What is right is taken as it is: no gradient flows through the choice.
    """
    log_p = (logits / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return torch.where(logits.argmax(-1) == tokens, entropy, 0.0)

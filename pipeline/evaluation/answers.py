"""A model's answers to the harness's requests, as they are kept in TASK.answers.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GeneratedAnswer:
    """A response to a prompt, with what a sample's `Filling` holds; here none of it may be missing."""

    response: str
    pieces: Sequence[str]
    filled: Sequence[int]
    tokens: int
    forwards: int
    ended: bool
    masks: int
    """Mask tokens among them: the sampler promises none."""
    seconds: float
    """Its share of the batch."""
    latency: float
    """Until the batch was done, in seconds."""
    device: str = ""


@dataclass(frozen=True)
class LikelihoodAnswer:
    """The bound of a continuation, or of a whole text."""

    log_likelihood: float
    """In nats."""
    variance: float
    """Of the estimate."""
    greedy: bool
    """Whether decoding gives the continuation; False for a whole text."""
    seconds: float
    device: str = ""


Answer = GeneratedAnswer | LikelihoodAnswer

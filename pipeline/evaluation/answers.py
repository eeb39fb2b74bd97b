"""A model's answers to the harness's requests, as they are kept in TASK.answers.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.results import Filling


@dataclass(frozen=True, kw_only=True)
class GeneratedAnswer(Filling):
    """A response to a prompt."""

    response: str
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

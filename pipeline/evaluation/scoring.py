"""From answers to a `Score` and its `TaskSample`s: metrics with intervals, costs, alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from pipeline.core.files import json_sha256
from pipeline.evaluation.answers import GeneratedAnswer, LikelihoodAnswer
from pipeline.evaluation.results import (
    Choice,
    CostOf,
    Filling,
    Generation,
    Likelihood,
    Mean,
    Provenance,
    Score,
    TaskSample,
    read_scores,
)
from pipeline.evaluation.statistics import interval
from pipeline.models.card import ScoreRow, add_scores

MANY_TRUNCATED = 0.2
MANY_UNSURE = 0.1
RAW_OUTPUTS = 5
LENGTHS = (16, 64, 256, math.inf)  # costs are given for responses of up to this many tokens


def metrics(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Mean]:
    """{"METRIC,FILTER": its mean} of the harness's results and samples."""
    values: dict[str, list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    return {key: _mean(float(results[key]), of) for key, of in values.items()}


def _mean(value: float, values: Sequence[Any]) -> Mean:
    """With an interval where the value is the mean of one number per problem."""
    is_mean = all(isinstance(v, Real) for v in values) and abs(fmean(values) - value) < 1e-9
    return Mean(value, len(values), *(interval([float(v) for v in values]) if is_mean else ()))


def generated_sample(sample: Mapping[str, Any], metric: str | None, answer: GeneratedAnswer) -> TaskSample:
    """Of a task that generates, from the harness's sample."""
    return TaskSample(
        response=answer.response,
        answer=sample["filtered_resps"][0],
        filling=Filling.from_json(vars(answer)),
        **_common(sample, metric),
    )


def likelihood_sample(sample: Mapping[str, Any], metric: str | None, answers: Sequence[LikelihoodAnswer]) -> TaskSample:
    """Of a task over log-likelihoods."""
    choices = [
        Choice(args[-1], a.log_likelihood, math.sqrt(a.variance))
        for args, a in zip(sample["arguments"], answers, strict=True)
    ]
    best, *others = sorted(choices, key=lambda c: -c.log_likelihood)
    noise = math.hypot(best.stderr, others[0].stderr) if others else 0.0
    return TaskSample(
        response=best.text,
        answer=best.text,
        choices=choices,
        unsure=bool(others) and best.log_likelihood - others[0].log_likelihood < 2 * noise,
        **_common(sample, metric),
    )


def _common(sample: Mapping[str, Any], metric: str | None) -> dict[str, Any]:
    """Fields of both kinds of samples."""
    value = sample[metric] if metric else None
    return {
        "id": sample["doc_id"],
        "prompt": sample["arguments"][0][0],
        "target": sample["target"],
        "metric": metric,
        "value": value,
        "correct": bool(value) if metric and value in (0, 1) else None,
    }


def prompts_hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """12 hex digits that change with any prompt (template, shots, their order) and with the problems' choice."""
    asked = [[a for a in args if isinstance(a, str)] for sample in samples for args in sample["arguments"]]
    return json_sha256(asked)[:12]


def generation(answers: Sequence[GeneratedAnswer]) -> Generation:
    """Length, speed and cost of the responses of a task."""
    by_length = {}
    for shortest, longest in pairwise((-1, *LENGTHS)):
        group = [a for a in answers if shortest < a.tokens <= longest]
        if group:
            by_length[f"up to {longest:g} tokens"] = CostOf(n=len(group), **_cost(group))
    return Generation(
        truncated=fmean(not a.ended for a in answers),
        masks_left=sum(a.masks for a in answers),
        tokens=sum(a.tokens for a in answers),
        by_length=by_length,
        **_cost(answers),
    )


def _cost(answers: Sequence[GeneratedAnswer]) -> dict[str, Any]:
    """The fields of Cost."""
    tokens, latency = sum(a.tokens for a in answers), [a.latency for a in answers]
    cuts = quantiles(latency, n=20, method="inclusive") if len(latency) > 1 else latency * 19
    return {
        "tokens_per_second": tokens / sum(a.seconds for a in answers),
        "forwards_per_token": sum(a.forwards for a in answers) / tokens if tokens else None,
        "latency_median": cuts[9],
        "latency_p95": cuts[18],
    }


def likelihood(answers: Sequence[LikelihoodAnswer], samples: Sequence[TaskSample]) -> Likelihood:
    """Noise of the estimator."""
    stderr = [math.sqrt(a.variance) for a in answers]
    return Likelihood(fmean(stderr), max(stderr), fmean(sample.unsure for sample in samples))


def alarms(score: Score) -> list[str]:
    """Reasons to look at the outputs before taking the score as a result."""
    problems = []
    if score.value == 0:
        problems.append(f"{score.metric} is 0: more often a wrong template, stop string or filter than a weak model")
    if score.generation and score.generation.truncated > MANY_TRUNCATED:
        share = f"{score.generation.truncated:.0%}"
        problems.append(f"{share} of the responses reach the length limit without an end token")
    if score.generation and score.generation.masks_left:
        problems.append(f"{score.generation.masks_left} mask tokens are left in the responses: the sampler is broken")
    if score.programs and (unsupported := score.programs.reasons.get("unsupported")):
        problems.append(f"{unsupported} programs failed because the sandbox does not carry what their tests ask for")
    if score.likelihood and score.likelihood.unsure > MANY_UNSURE:
        share = f"{score.likelihood.unsure:.0%}"
        problems.append(f"{share} of the choices are within the estimator's noise: raise evaluation.likelihood_samples")
    return problems


def with_alarms(score: Score, samples: Sequence[TaskSample]) -> Score:
    """The score with its alarms and, where there are any, raw outputs."""
    problems = alarms(score)
    raw = [{"prompt": sample.prompt, "response": sample.response} for sample in samples[:RAW_OUTPUTS]]
    return replace(score, alarms=problems, raw_outputs=raw if problems else [])


def update_card(folder: Path) -> None:
    """Puts the scores in RUN/evaluation/STEP into the model card of that step's checkpoint, if there is one."""
    export = folder.parents[1] / "checkpoints" / folder.name / "export"
    scores = [score for score in read_scores(folder).values() if score.provenance]
    if scores and (export / "README.md").is_file():
        add_scores(export, [_card_row(score, score.provenance) for score in scores if score.provenance])


def _card_row(score: Score, provenance: Provenance) -> ScoreRow:
    return ScoreRow(
        score.task,
        score.metric or "",
        score.value,
        score.bounds,
        score.n,
        provenance.preset,
        provenance.preset_hash,
        score.alarms,
    )

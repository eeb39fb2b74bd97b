"""From answers to a result: metrics with intervals, samples, costs, alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from pipeline.core.files import json_sha256, read_json
from pipeline.evaluation.answer_cache import Record
from pipeline.evaluation.statistics import interval

MANY_TRUNCATED = 0.2
MANY_UNSURE = 0.1
RAW_OUTPUTS = 5
LENGTHS = (16, 64, 256, math.inf)  # costs are given for responses of up to so many tokens


def metrics(results: Mapping[str, Any], samples: Sequence[Record]) -> dict[str, Record]:
    """{"METRIC,FILTER": value, n and 95% interval}; no interval where the value is no mean over problems."""
    scores: dict[str, list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            scores.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    table = {}
    for key, values in scores.items():
        value = results[key]
        is_mean = all(isinstance(v, Real) for v in values) and abs(fmean(values) - value) < 1e-9
        low, high = interval([float(v) for v in values]) if is_mean else (None, None)
        table[key] = {"value": float(value), "n": len(values), "low": low, "high": high}
    return table


def generated_row(sample: Record, metric: str | None, answer: Record) -> Record:
    """A sample of a task that generates."""
    kept = ("tokens", "forwards", "ended", "pieces", "filled")
    return {
        "id": sample["doc_id"],
        "prompt": sample["arguments"][0][0],
        "response": answer["response"],
        "answer": sample["filtered_resps"][0],
        "target": sample["target"],
        **_verdict(sample, metric),
        **{name: answer[name] for name in kept},
    }


def likelihood_row(sample: Record, metric: str | None, answers: Sequence[Record]) -> Record:
    """A sample of a task over log-likelihoods; its response is the likeliest continuation."""
    choices = [
        {"text": args[-1], "log_likelihood": a["log_likelihood"], "stderr": math.sqrt(a["variance"])}
        for args, a in zip(sample["arguments"], answers, strict=True)
    ]
    best, *others = sorted(choices, key=lambda c: -c["log_likelihood"])
    noise = math.hypot(best["stderr"], others[0]["stderr"]) if others else 0.0
    return {
        "id": sample["doc_id"],
        "prompt": sample["arguments"][0][0],
        "response": best["text"],
        "answer": best["text"],
        "target": sample["target"],
        **_verdict(sample, metric),
        "choices": choices,
        "unsure": bool(others) and best["log_likelihood"] - others[0]["log_likelihood"] < 2 * noise,
    }


def _verdict(sample: Record, metric: str | None) -> Record:
    if metric is None:
        return {"correct": None}
    value = sample[metric]
    return {metric: value, "correct": bool(value) if value in (0, 1) else None}


def prompts_hash(samples: Sequence[Record]) -> str:
    """12 hex digits that change with any prompt (template, shots, their order) and with the problems' choice."""
    asked = [[a for a in args if isinstance(a, str)] for sample in samples for args in sample["arguments"]]
    return json_sha256(asked)[:12]


def generation_facts(answers: Sequence[Record]) -> Record:
    """Length, speed and cost; prompt tokens, end tokens and what follows them never count."""
    by_length, shortest = {}, 0
    for longest in LENGTHS:
        held = [a for a in answers if shortest <= a["tokens"] <= longest]
        if held:
            by_length[f"up to {longest:g} tokens"] = {"n": len(held), **_costs(held)}
        shortest = longest + 1
    return {
        "truncated": fmean(not a["ended"] for a in answers),
        "masks_left": sum(a["masks"] for a in answers),
        "tokens": sum(a["tokens"] for a in answers),
        "seconds": round(sum(a["seconds"] for a in answers), 3),
        **_costs(answers),
        "by_length": by_length,
    }


def _costs(answers: Sequence[Record]) -> Record:
    """tokens_per_second is of one device; latency is until a response's batch was done, in seconds."""
    tokens, latency = sum(a["tokens"] for a in answers), [a["latency"] for a in answers]
    cuts = quantiles(latency, n=20, method="inclusive") if len(latency) > 1 else latency * 19
    return {
        "tokens_per_second": tokens / sum(a["seconds"] for a in answers),
        "forwards_per_token": sum(a["forwards"] for a in answers) / tokens if tokens else None,
        "latency_median": cuts[9],
        "latency_p95": cuts[18],
    }


def likelihood_facts(answers: Sequence[Record], rows: Sequence[Record]) -> Record:
    """Noise of the estimator: standard errors in nats, and problems whose two best choices are within two of them."""
    return {
        "seconds": round(sum(a["seconds"] for a in answers), 3),
        "likelihood": {
            "mean_stderr": fmean(math.sqrt(a["variance"]) for a in answers),
            "largest_stderr": max(math.sqrt(a["variance"]) for a in answers),
            "unsure": fmean(row["unsure"] for row in rows),
        },
    }


def alarms(score: Record) -> list[str]:
    """What must not pass for a result without a look at the outputs."""
    found = []
    if score["value"] == 0:
        found.append(f"{score['metric']} is 0: more often a wrong template, stop string or filter than a weak model")
    if score.get("truncated", 0) > MANY_TRUNCATED:
        found.append(f"{score['truncated']:.0%} of the responses reach the length limit without an end token")
    if score.get("masks_left"):
        found.append(f"{score['masks_left']} mask tokens are left in the responses: the sampler is broken")
    unsure = score.get("likelihood", {}).get("unsure", 0)
    if unsure > MANY_UNSURE:
        found.append(
            f"{unsure:.0%} of the choices are within the estimator's noise: raise evaluation.likelihood_samples"
        )
    return found


def with_alarms(score: Record, rows: Sequence[Record]) -> Record:
    """The score with its alarms and, where there are any, raw outputs."""
    found = alarms(score)
    raw = [{name: row[name] for name in ("prompt", "response")} for row in rows[:RAW_OUTPUTS]]
    return score | {"alarms": found} | ({"raw_outputs": raw} if found else {})


def update_card(folder: Path) -> None:
    """Puts the scores in RUN/evaluation/STEP into the model card of that step's checkpoint, if there is one."""
    export = folder.parents[1] / "checkpoints" / folder.name / "export"
    scores = [score for score in map(read_json, sorted(folder.glob("*.json"))) if score and "preset" in score]
    if scores and (export / "README.md").is_file():
        from pipeline.models.card import add_scores

        add_scores(export, scores)

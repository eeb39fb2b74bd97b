"""Runs the programs that code tasks have saved, in a sandbox, and completes their scores: pass@1.

`python pipeline/evaluate.py score [--recipe X] [--label NAME]`. Nothing else of this project executes generated code. A
verdict is kept as soon as it is there, so a killed scoring goes on where it was; verdicts do not depend on the workers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import track

from pipeline.evaluation import results
from pipeline.evaluation.sandbox import Limits, Sandbox, Tests
from pipeline.evaluation.statistics import interval
from pipeline.recipe import BadInput, parse, parser
from pipeline.run_directory import read_json, record_status, write_json, write_text

METRIC = "pass@1"
Record = dict[str, Any]


def main(argv: list[str]) -> None:
    """Scores all saved samples of code tasks in the run's evaluation/, or those of one label."""
    defaults = Limits()
    p = parser(__doc__)
    p.add_argument("--label", default="", help="score only RUN_DIR/evaluation/LABEL")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="programs that run at once")
    p.add_argument("--cpu_seconds", type=int, default=defaults.cpu_seconds, help="processor time of a program")
    p.add_argument("--wall_seconds", type=float, default=defaults.wall_seconds, help="wall time of a program")
    p.add_argument("--memory_mb", type=int, default=defaults.memory_bytes >> 20, help="address space of a program")
    recipe, flags = parse(p, argv)
    if min(flags.workers, flags.cpu_seconds, flags.wall_seconds, flags.memory_mb) <= 0:
        raise BadInput("--workers, --cpu_seconds, --wall_seconds and --memory_mb must be positive")
    limits = replace(
        defaults, cpu_seconds=flags.cpu_seconds, wall_seconds=flags.wall_seconds, memory_bytes=flags.memory_mb << 20
    )
    root = Path(recipe.run_dir) / "evaluation"
    with record_status(Path(recipe.run_dir), "score"):
        found = list(code_samples(root / flags.label if flags.label else root))
        if not found:
            raise BadInput(
                f"no saved samples of a code task in {root / flags.label}: run `python pipeline/evaluate.py` with task "
                "humaneval or mbpp first"
            )
        with Sandbox.open(limits) as sandbox:
            for path in found:
                score = score_samples(path, sandbox, flags.workers)
                show(path, score)


def code_samples(root: Path) -> Iterator[Path]:
    """Sample files of tasks whose targets are test programs, below a folder."""
    for path in sorted(root.rglob("*.samples.jsonl")):
        with path.open(encoding="utf-8") as lines:
            target = json.loads(next(lines, "{}")).get("target")
        if isinstance(target, dict) and "tests" in target:
            yield path


def score_samples(path: Path, sandbox: Sandbox, workers: int) -> Record:
    """Judges the samples of a file. Writes TASK.verdicts.jsonl, `pass@1` and `correct` into the samples and the score
    into TASK.json, which it returns."""
    task = path.name.removesuffix(".samples.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = _verdicts(path.with_name(f"{task}.verdicts.jsonl"), samples, sandbox, workers)
    for sample, verdict in zip(samples, verdicts, strict=True):
        told = {name: verdict[name] for name in ("reason", "detail")}
        sample |= {METRIC: float(verdict["passed"]), "correct": verdict["passed"], **told}
    values = [sample[METRIC] for sample in samples]
    low, high = interval(values)
    headline = {"value": sum(values) / len(values), "n": len(values), "low": low, "high": high}
    score = (read_json(path.with_name(f"{task}.json")) or {"task": task}) | {
        "metric": METRIC,
        **headline,
        "higher_is_better": True,
        "metrics": {f"{METRIC},program": headline},
        "reasons": dict(Counter(verdict["reason"] for verdict in verdicts).most_common()),
        "limits": asdict(sandbox.limits),
    }
    score["alarms"] = results.alarms(score)
    if score["alarms"]:
        score["raw_outputs"] = [{k: s[k] for k in ("prompt", "response")} for s in samples[: results.RAW_OUTPUTS]]
    write_text(path, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    write_json(path.with_name(f"{task}.json"), score)
    results.update_card(path.parent.absolute())
    return score


def _verdicts(path: Path, samples: list[Record], sandbox: Sandbox, workers: int) -> list[Record]:
    """One verdict a sample, in their order; those that the file has for the same program, tests and limits stay."""
    limits = asdict(sandbox.limits)
    asked = [json.dumps([limits, sample["answer"], sample["target"]]) for sample in samples]
    keys = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in asked]
    known = {verdict["key"]: verdict for verdict in _read_lines(path)}
    missing = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in known}

    def judge(key: str) -> Record:
        sample = missing[key]
        return {"key": key, **asdict(sandbox.judge(sample["answer"], Tests(**sample["target"])))}

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(workers) as pool:
        for verdict in track(pool.map(judge, missing), description=path.stem, total=len(missing)):
            known[verdict["key"]] = verdict
            file.write(json.dumps(verdict, ensure_ascii=False) + "\n")
            file.flush()
    verdicts = [{"id": sample["id"], **known[key]} for key, sample in zip(keys, samples, strict=True)]
    write_text(path, "".join(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts))
    return verdicts


def _read_lines(path: Path) -> Iterator[Record]:
    """Complete lines; one that a kill has cut is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def show(path: Path, score: Record) -> None:
    """Prints a score, why programs failed, and alarms with raw outputs."""
    reasons = ", ".join(f"{reason}: {count}" for reason, count in score["reasons"].items())
    bounds = f"95% interval {score['low']:.3f} to {score['high']:.3f}"
    print(f"{path.parent.name} {score['task']}: {METRIC} {score['value']:.3f}, {bounds}, n = {score['n']} ({reasons})")
    for alarm in score["alarms"]:
        print(f"  alarm: {alarm}")
    for output in score.get("raw_outputs", []):
        print(f"    {output['response']!r}")

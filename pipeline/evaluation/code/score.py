"""Runs the programs that code tasks have saved, in a sandbox, and completes their scores: pass@1.

`python pipeline/evaluate.py score [--recipe X] [--label NAME]`. Nothing else of this project executes generated code. A
verdict is kept as soon as it is there, so a killed scoring goes on where it was; verdicts do not depend on the workers.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import track

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput
from pipeline.core.files import read_json, read_json_lines, write_json, write_json_lines
from pipeline.core.stage_status import record_status
from pipeline.evaluation import scoring
from pipeline.evaluation.answer_cache import Answers, Record, request_key
from pipeline.evaluation.code.sandbox import Limits, Sandbox, Tests
from pipeline.evaluation.statistics import interval

METRIC = "pass@1"


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
    samples = read_json_lines(path)
    verdicts = _verdicts(path.parent, task, samples, sandbox, workers)
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
    score = scoring.with_alarms(score, samples)
    write_json_lines(path, samples)
    write_json(path.with_name(f"{task}.json"), score)
    scoring.update_card(path.parent.absolute())
    return score


def _verdicts(folder: Path, task: str, samples: list[Record], sandbox: Sandbox, workers: int) -> list[Record]:
    """One verdict a sample, in their order; those that TASK.verdicts.jsonl has for the same program, tests and limits stay."""
    limits = asdict(sandbox.limits)
    keys = [request_key(limits, sample["answer"], sample["target"]) for sample in samples]

    def judge(sample: Record) -> Record:
        return asdict(sandbox.judge(sample["answer"], Tests(**sample["target"])))

    with Answers(folder, task, kind="verdicts") as known, ThreadPoolExecutor(workers) as pool:
        missing = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in known}
        judged = track(pool.map(judge, missing.values()), description=f"{task}.verdicts", total=len(missing))
        for key, verdict in zip(missing, judged, strict=True):
            known.add(key, verdict)
        verdicts = [{"id": sample["id"], "key": key, **known[key]} for key, sample in zip(keys, samples, strict=True)]
        write_json_lines(folder / f"{task}.verdicts.jsonl", verdicts)
    return verdicts


def show(path: Path, score: Record) -> None:
    """Prints a score, why programs failed, and alarms with raw outputs."""
    reasons = ", ".join(f"{reason}: {count}" for reason, count in score["reasons"].items())
    bounds = f"95% interval {score['low']:.3f} to {score['high']:.3f}"
    print(f"{path.parent.name} {score['task']}: {METRIC} {score['value']:.3f}, {bounds}, n = {score['n']} ({reasons})")
    for alarm in score["alarms"]:
        print(f"  alarm: {alarm}")
    for output in score.get("raw_outputs", []):
        print(f"    {output['response']!r}")

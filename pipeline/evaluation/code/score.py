"""Runs the programs that code tasks have saved, in a sandbox, and completes their scores: pass@1.

`python pipeline/evaluate.py score [--recipe X] [--label NAME]`. Nothing else of this project executes generated code. A
verdict is kept as soon as it is there, so a killed scoring goes on where it was; verdicts do not depend on the workers.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

from rich.progress import track

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_json_lines
from pipeline.core.run_directory import evaluation_folder
from pipeline.core.stage_status import record_status
from pipeline.distributed.signals import stop_early_on
from pipeline.evaluation import scoring
from pipeline.evaluation.answer_cache import AnswerCache, request_key
from pipeline.evaluation.code.limits import Limits
from pipeline.evaluation.code.sandbox import Sandbox, Tests, Verdict
from pipeline.evaluation.results import SAMPLES, Mean, Programs, Score, TaskSample, read_samples, read_score
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
    run_dir = Path(recipe.run_dir)
    folder = evaluation_folder(run_dir, flags.label) if flags.label else run_dir / "evaluation"
    paths = list(code_samples(folder))
    if not paths:
        raise BadInput(
            f"no saved samples of a code task in {folder}: run `python pipeline/evaluate.py` with task humaneval or "
            "mbpp first"
        )
    with record_status(run_dir, "score"):
        message = "stopped by SIGTERM; verdicts so far are kept, the same command goes on"
        stop_early_on(signal.SIGTERM, message=message)
        with Sandbox.open(limits) as sandbox:
            for path in paths:
                score = score_samples(path, sandbox, flags.workers)
                print_score(path, score)


def code_samples(root: Path) -> Iterator[Path]:
    """Sample files of tasks whose targets are test programs, below a folder."""
    for path in sorted(root.rglob(f"*{SAMPLES}")):
        with path.open(encoding="utf-8") as lines:
            target = json.loads(next(lines, "{}")).get("target")
        if isinstance(target, dict) and "tests" in target:
            yield path


def score_samples(path: Path, sandbox: Sandbox, workers: int) -> Score:
    """Judges the samples of a file. Writes TASK.verdicts.jsonl, `pass@1` and `correct` into the samples and the score
    into TASK.json, which it returns."""
    folder, task = path.parent, path.name.removesuffix(SAMPLES)
    score = read_score(folder, task) or Score(task, METRIC, None, 0)
    asked = read_samples(folder, score)
    verdicts = _verdicts(folder, task, asked, sandbox, workers)
    samples = [
        replace(sample, metric=METRIC, value=float(v.passed), correct=v.passed, reason=v.reason, detail=v.detail)
        for sample, v in zip(asked, verdicts, strict=True)
    ]
    values = [float(v.passed) for v in verdicts]
    mean = Mean(sum(values) / len(values), len(values), *interval(values))
    reasons = Counter(verdict.reason for verdict in verdicts)
    score = replace(
        score,
        **{"metric": METRIC, **asdict(mean)},
        higher_is_better=True,
        metrics={f"{METRIC},program": mean},
        programs=Programs(dict(reasons.most_common()), asdict(sandbox.limits)),
    )
    score = scoring.with_alarms(score, samples)
    write_json_lines(path, [sample.to_json() for sample in samples])
    write_json(folder / f"{task}.json", score.to_json())
    scoring.update_card(folder.absolute())
    return score


def _verdicts(folder: Path, task: str, samples: list[TaskSample], sandbox: Sandbox, workers: int) -> list[Verdict]:
    """One verdict per sample, in their order; those that TASK.verdicts.jsonl has for the same program, tests and limits stay."""
    limits = asdict(sandbox.limits)
    keys = [request_key(limits, sample.answer, sample.target) for sample in samples]

    def judge(sample: TaskSample) -> Verdict:
        return sandbox.judge(sample.answer, Tests(**sample.target))

    with AnswerCache(folder, task, kind="verdicts") as known, ThreadPoolExecutor(workers) as pool:
        missing = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in known}
        judged = track(pool.map(judge, missing.values()), description=f"{task}.verdicts", total=len(missing))
        for key, verdict in zip(missing, judged, strict=True):
            known.add(key, asdict(verdict))
        rows = [{"id": sample.id, "key": key, **known[key]} for key, sample in zip(keys, samples, strict=True)]
        write_json_lines(folder / f"{task}.verdicts.jsonl", rows)
    return [Verdict(**{f.name: known[key][f.name] for f in fields(Verdict)}) for key in keys]


def print_score(path: Path, score: Score) -> None:
    """Prints a score, why programs failed, and alarms with raw outputs."""
    reasons = ", ".join(f"{r}: {count}" for r, count in (score.programs.reasons if score.programs else {}).items())
    print(
        f"{path.parent.name} {score.task}: {METRIC} {score.value:.3f}, 95% interval {score.bounds}, n = {score.n} "
        f"({reasons})"
    )
    for alarm in score.alarms:
        print(f"  alarm: {alarm}")
    for output in score.raw_outputs:
        print(f"    {output['response']!r}")

"""Runs variants of a recipe over seeds and compares them: `python pipeline/study.py --study demo/study/carry.yaml`.

Or without a file: `--recipe X --vary objective.strategy=calm,tide_cross --seeds 0..7`. A study can be stopped or killed at
any time: the same command does what is missing. Everything goes to runs/study/NAME; the table is printed at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from functools import partial

from pipeline.core.errors import exit_code, leave
from pipeline.evaluation.answer_cache import Shard
from pipeline.experiments.command_line import parse_study
from pipeline.experiments.workers import run_study


def main() -> None:
    """Reads the study, checks every variant, runs what is missing and prints the table."""
    study, flags = parse_study(sys.argv[1:], __doc__)
    failed = [] if flags.table else run_study(study, Shard.parse(flags.shard, dict(os.environ)), flags.workers)
    from pipeline.experiments.results import collect, print_table  # imports torch: workers set its threads before that

    print_table(study, collect(study))
    if failed:
        where = f"see log.txt in {study.folder}/VARIANT/SEED"
        raise SystemExit(f"study: {len(failed)} runs failed ({', '.join(failed)}): {where}")


command = partial(exit_code, "study", main)  # tide-study

if __name__ == "__main__":
    leave(command())

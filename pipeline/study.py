"""Runs variants of a recipe over seeds and compares them: `python pipeline/study.py --study demo/study/carry.yaml`.

Or without a file: `--recipe X --vary objective.strategy=calm,tide_cross --seeds 0..7`. A study can be stopped or killed at
any time: the same command does what is missing. Everything goes to runs/study/NAME; the table is printed at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from functools import partial

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from pipeline.config.cli import add_verbosity, apply_verbosity
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.version import add_version
from pipeline.evaluation.answer_cache import Shard
from pipeline.experiments.grid import Study, grid, read_variants
from pipeline.experiments.workers import run_study


def main() -> None:
    """Reads the study, checks every variant, runs what is missing and prints the table."""
    study, flags = parse_study(sys.argv[1:])
    failed = [] if flags.table else run_study(study, Shard.parse(flags.shard, dict(os.environ)), flags.workers)
    from pipeline.experiments.results import collect, print_table  # imports torch: workers set its threads before that

    print_table(study, collect(study))
    if failed:
        where = f"see log.txt in {study.folder}/VARIANT/SEED"
        raise SystemExit(f"study: {len(failed)} runs failed ({', '.join(failed)}): {where}")


def parse_study(argv: list[str]) -> tuple[Study, Namespace]:
    """The study and the flags. Raises BadInput for what is unknown or of the wrong type."""
    p = ArgumentParser(exit_on_error=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--study", action="config", help="study file: the fields below")
    p.add_class_arguments(Study)
    p.add_argument("--vary", nargs="*", default=[], help="FIELD=VALUE,VALUE: variants; of several: their product")
    p.add_argument(
        "--workers", type=PositiveInt, default=2, help="runs at the same time, each on its part of the cores"
    )
    p.add_argument("--shard", default="", help="i/n: every n-th seed from i on (default: a Slurm array's task, or all)")
    add_verbosity(p)
    add_version(p)
    p.add_argument("--table", action="store_true", help="run nothing: print the table of what is done")
    try:
        flags = p.parse_args(argv)
        fields = {name: getattr(flags, name) for name in Study.__dataclass_fields__}
    except (ArgumentError, yaml.YAMLError) as error:
        raise BadInput(f"{' '.join(str(error).split())} (--help explains every field)") from None
    apply_verbosity(flags)
    if varied := grid(flags.vary):
        known = read_variants(fields["variants"]) or {fields["baseline"]: {"teachers": []}}
        fields["variants"] = {**known, **varied}
    return Study(**fields), flags


command = partial(exit_code, "study", main)  # tide-study

if __name__ == "__main__":
    sys.exit(command())

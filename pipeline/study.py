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
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from pipeline.config.cli import add_verbosity, apply_verbosity
from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput, exit_code
from pipeline.evaluation.answer_cache import Share
from pipeline.experiments.grid import Study, grid, read_variants


def main() -> None:
    """Reads the study, checks every variant, runs what is missing and prints the table."""
    study, flags = parse_study(sys.argv[1:])
    share = Share.parse(flags.shard, dict(os.environ))
    seeds = study.seed_numbers()[share.index :: share.of]
    recipes = {variant: study.run(variant, 0) for variant in study.planned()}
    failed = [] if flags.table else run(study, recipes, seeds, flags.workers)
    from pipeline.experiments.results import collect, show

    show(study, collect(study))
    if failed:
        raise SystemExit(
            f"study: {len(failed)} runs failed ({', '.join(failed)}): see log.txt in {study.folder}/VARIANT/SEED"
        )


def parse_study(argv: list[str]):
    """The study and the flags. Raises BadInput for what is unknown or of the wrong type."""
    p = ArgumentParser(exit_on_error=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--study", action="config", help="study file: the fields below")
    p.add_class_arguments(Study)
    p.add_argument(
        "--vary", nargs="*", default=[], help="FIELD=VALUE,VALUE: variants; of several fields: their product"
    )
    p.add_argument(
        "--workers", type=PositiveInt, default=2, help="seeds that run at the same time, each on its share of the cores"
    )
    p.add_argument(
        "--shard", default="", help="i/n: every n-th seed from the i-th on (default: a Slurm array's task, or all)"
    )
    add_verbosity(p)
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


def run(study: Study, recipes: dict[str, Recipe], seeds: list[int], workers: int) -> list[str]:
    """Aligns the data if it must be, scores the teachers, and does the runs; returns those that failed.

    `recipes`: one of each variant, of any seed.
    """
    if not seeds:  # a job array of more tasks than seeds
        return []
    from pipeline.alignment.build import align
    from pipeline.distributed.mpi_ranks import Ranks
    from pipeline.experiments.runs import score_teachers
    from pipeline.experiments.workers import run_seeds
    from pipeline.training.preflight import prepare

    data = {recipe.data.aligned: recipe for recipe in reversed([study.base(), *recipes.values()])}
    for folder, recipe in data.items():
        print(f"data: {folder}", flush=True)
        align(recipe, Ranks(), 1, 4096)
    for variant, recipe in recipes.items():  # one whose data, lengths or tokenizers are others' is refused here
        try:
            prepare(recipe, Path(study.engine))
        except BadInput as error:
            raise BadInput(f"variant {variant}: {error}") from None
    if study.seed_numbers()[:1] == seeds[:1]:  # of a job array's parts, one
        score_teachers(study)
    return run_seeds(study, seeds, min(workers, max(1, len(seeds))))


command = partial(exit_code, "study", main)
"""The console command `tide-study`; returns the exit code."""

if __name__ == "__main__":
    sys.exit(command())

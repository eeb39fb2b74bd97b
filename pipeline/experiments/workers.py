"""Runs of a study in several processes: the starts first, then seed by seed, so that what is done can be compared at any time."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput, StoppedEarly
from pipeline.core.log import log
from pipeline.distributed.launcher_env import free_port
from pipeline.distributed.signals import StopSignals, end_with_parent
from pipeline.evaluation.answer_cache import Shard
from pipeline.experiments.grid import START, Study


def run_study(study: Study, shard: Shard, workers: int) -> list[str]:
    """Aligns the data if it must be, scores the teachers, and does the runs of the shard's seeds; returns those that failed.

    Raises BadInput, before anything is done, for a variant that is no recipe.
    """
    seeds = study.seed_numbers()[shard.index :: shard.of]
    recipes = {variant: study.run(variant, 0) for variant in study.planned()}
    if not seeds:  # a job array of more tasks than seeds
        return []
    from pipeline.alignment.build import align
    from pipeline.distributed.mpi_ranks import Ranks
    from pipeline.experiments.results import earlier_results
    from pipeline.experiments.runs import digest, score_teachers
    from pipeline.training.preflight import prepare

    for recipe in datasets([study.base, *recipes.values()]):
        log.info(f"data: {recipe.data.aligned}")
        align(recipe, Ranks(), 1, 4096)
    for variant, recipe in recipes.items():  # one whose data, lengths or tokenizers are others' is refused here
        try:
            prepare(recipe, Path(study.engine))
        except BadInput as error:
            raise BadInput(f"variant {variant}: {error}") from None
    earlier = earlier_results(study).runs
    complete = {run.seed for run in earlier}
    for run in earlier:
        if run.seed == min(complete) and run.digest != digest(study.run(run.variant, run.seed)):
            raise BadInput(f"{study.results}: {run.variant} was made with other settings or data: name another file")
    seeds = [seed for seed in seeds if seed not in complete]
    if study.seed_numbers()[:1] == seeds[:1]:  # of a job array's parts, one
        score_teachers(study)
    return run_seeds(study, seeds, max(1, min(workers, len(seeds) * len(study.by_name))))


def datasets(recipes: Sequence[Recipe]) -> list[Recipe]:
    """A recipe for each aligned dataset, with the teachers of all recipes that read it."""
    made: dict[str, Recipe] = {}
    for recipe in recipes:
        first = made.setdefault(recipe.data.aligned, recipe)
        names = {teacher.name for teacher in first.teachers}
        added = [teacher for teacher in recipe.teachers if teacher.name not in names]
        made[recipe.data.aligned] = replace(first, teachers=[*first.teachers, *added])
    return list(made.values())


def run_seeds(study: Study, seeds: Sequence[int], workers: int) -> list[str]:
    """Does every run of these seeds, `workers` at a time; prints a line per run. Returns the runs that failed.

    One worker is this very process, which a signal stops at the next step. Raises StoppedEarly.
    """
    if workers == 1:
        set_environment(1)
        return _runs(study, seeds, lambda runs: [_run(study, *run) for run in runs])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=(workers,)) as pool:

        def do(runs: Iterable[tuple[str, int]]) -> list[str]:
            return [done.result() for done in as_completed([pool.submit(_run, study, *run) for run in runs])]

        try:
            return _runs(study, seeds, do)
        except BrokenProcessPool:
            raise SystemExit(
                "study: a worker was killed (is there memory for all of them?): the same command goes on"
            ) from None
        except KeyboardInterrupt:  # the workers get it too, and save
            raise StoppedEarly("stopped: the same command goes on") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _runs(study: Study, seeds: Sequence[int], do: Callable[[Iterable[tuple[str, int]]], list[str]]) -> list[str]:
    """The starts, then the variants of every seed that has something to start from; the names of the runs that failed."""
    starts = do((START, seed) for seed in seeds if START in study.planned())
    sound = [seed for seed in seeds if f"{START}/{seed}" not in starts]
    variants = do((variant, seed) for seed in sound for variant in study.by_name)
    return [name for name in starts + variants if name]


def _start_worker(workers: int) -> None:
    end_with_parent()
    set_environment(workers)


def set_environment(workers: int) -> None:
    """This process's share of the cores, and a port of its own; before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ["MASTER_PORT"] = str(free_port())


@lru_cache
def _signals() -> StopSignals:
    """One for all of this process's runs."""
    return StopSignals()


def _run(study: Study, variant: str, seed: int) -> str:
    """One run, unless it is done; its name where it failed, else nothing. What it prints goes to RUN_DIR/log.txt."""
    from pipeline.experiments.runs import is_done, run_one

    if is_done(study, variant, seed):
        return ""
    failed, began, path = "", time.perf_counter(), study.run_dir(variant, seed) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            run_one(study, variant, seed, _signals())
            outcome = "done"
        except Exception as error:  # one run's failure is not the study's
            traceback.print_exc()
            outcome = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:200]} ({path})"
            failed = f"{variant}/{seed}"
    log.info(f"{variant} seed {seed}: {outcome}, {time.perf_counter() - began:.0f} s")
    return failed

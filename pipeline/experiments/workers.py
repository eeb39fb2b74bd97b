"""Runs of a study in several processes. A worker takes whole seeds, so that what is done can be compared at any time."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
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
    return run_seeds(study, seeds, min(workers, max(1, len(seeds))))


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
    """Runs every variant with every seed, `workers` seeds at a time; prints a line per run. Returns the runs that failed.

    One worker is this very process, which a signal stops at the next step. Raises StoppedEarly.
    """
    if workers == 1:
        set_environment(1)
        return [name for seed in seeds for name in _seed(study, seed)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=(workers,)) as pool:
        try:
            done = as_completed([pool.submit(_seed, study, seed) for seed in seeds])
            return [name for future in done for name in future.result()]
        except BrokenProcessPool:
            raise SystemExit(
                "study: a worker was killed (is there memory for all of them?): the same command goes on"
            ) from None
        except KeyboardInterrupt:  # the workers get it too, and save
            raise StoppedEarly("stopped: the same command goes on") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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


def _seed(study: Study, seed: int) -> list[str]:
    """All runs of a seed, the start first; the names of those that failed. What they print goes to RUN_DIR/log.txt."""
    from pipeline.experiments.runs import is_done, run_one

    stop, failed = _signals(), []
    for variant in study.planned():
        if is_done(study, variant, seed):
            continue
        began, path = time.perf_counter(), study.run_dir(variant, seed) / "log.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                run_one(study, variant, seed, stop)
                outcome = "done"
            except Exception as error:  # one run's failure is not the study's
                traceback.print_exc()
                outcome = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:200]} ({path})"
                failed.append(f"{variant}/{seed}")
        log.info(f"{variant} seed {seed}: {outcome}, {time.perf_counter() - began:.0f} s")
        if variant == START and failed:
            break  # the others have nothing to start from
    return failed

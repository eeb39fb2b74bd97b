"""The stage `distill`: a run from its recipe to its last checkpoint."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

from pipeline.config.recipe import Recipe, dump
from pipeline.core.checkpoint_files import saved_step, step_of
from pipeline.core.files import write_text
from pipeline.core.log import log, rank
from pipeline.core.stage_status import record_status, status_file, write_status
from pipeline.distributed import flight_recorder
from pipeline.distributed.collectives import all_or_error
from pipeline.distributed.signals import StopSignals
from pipeline.distributed.topology import Topology, check_expert_parallel_groups, start
from pipeline.distributed.watchdog import Watchdog
from pipeline.training import zero_state
from pipeline.training.build import build_trainer, fetch_models
from pipeline.training.checkpoint import Checkpoints, newest_intact
from pipeline.training.environment import write_environment
from pipeline.training.measurements import Measurements
from pipeline.training.metrics import Metrics
from pipeline.training.monitor import build_monitor
from pipeline.training.preflight import Plan, prepare
from pipeline.training.run_lock import finished, run_lock, stop_requests


def distill(recipe: Recipe, engine_config: Path, stop: StopSignals, timeout_minutes: float) -> None:
    """Trains from the newest checkpoint to the last step, unless that is done. Raises StoppedEarly after a signal or a request.

    Args:
        engine_config: a file of ds_configs/.
        timeout_minutes: the longest time without progress.
    """
    run_dir = Path(recipe.run_dir)
    with run_lock(recipe) or nullcontext():
        if finished(recipe):
            log.info(
                f"{run_dir} is done: choose another --run_dir or delete it to train again; to train it longer: docs/recipes.md"
            )
            return
        with stop_requests(run_dir) as requested, record_status(run_dir, "distill") as status:
            try:
                plan = prepare(recipe, engine_config)
                for line in plan.summary():
                    log.info(line)
                for warning in plan.warnings:
                    log.warning(warning)
                train(plan, stop, requested, timeout_minutes)
            finally:
                status["step"] = saved_step(run_dir)


def train(plan: Plan, stop: StopSignals, requested: Callable[[], bool], timeout_minutes: float) -> None:
    """Trains to the last step. Raises StoppedEarly after a signal or a request; ends the process where no rank can go on."""
    run_dir, limit = Path(plan.recipe.run_dir), timedelta(minutes=timeout_minutes)
    topology = start(limit + timedelta(minutes=1))  # the watchdog, which can say who hangs, is to speak first
    with Watchdog(topology, limit.total_seconds(), partial(_fail, run_dir, topology.rank)) as watchdog:
        _train(plan, topology, stop, requested, watchdog.heartbeat)


def _fail(run_dir: Path, rank: int, message: str, exit_code: int) -> None:
    """Every rank leaves its last collectives; of those that are left, the first to know writes the status file."""
    if not status_file(run_dir, "distill").exists():
        write_status(run_dir, "distill", "failed", exit_code, step=saved_step(run_dir), message=message)
    flight_recorder.dump(run_dir / "flight_recorder", rank)


def _train(
    plan: Plan, topology: Topology, stop: StopSignals, requested: Callable[[], bool], heartbeat: Callable[[str], None]
) -> None:
    recipe, run_dir = plan.recipe, Path(plan.recipe.run_dir)
    heartbeat("reading the checkpoints")
    checkpoint = newest_intact(run_dir, topology)
    first = step_of(checkpoint) if checkpoint else 0
    heartbeat("fetching the models")
    check_expert_parallel_groups(
        topology.gather_objects(socket.gethostname()), plan.expert_parallel_size, topology.local_world_size
    )
    all_or_error(partial(fetch_models, recipe), topology.gather_objects)
    heartbeat("loading the models")
    trainer = build_trainer(plan, topology)
    metrics = Metrics(
        run_dir / "metrics.jsonl",
        ["cross_entropy", *(t.name for t in recipe.teachers), *["certainty"] * bool(recipe.objective.certainty.weight)],
        first=first,
        steps=trainer.steps,
        device=topology.device,
        monitor=build_monitor(plan.engine_config, run_dir),
    )
    if checkpoint:
        heartbeat(f"loading {checkpoint.name}")
        trainer.init_optimizer_state()
        metrics.load_state(zero_state.restore(trainer.engine, checkpoint / "state", first))
        log.info(f"going on from {checkpoint}")
    metrics.truncate_after(first)
    if rank() == 0:
        write_text(run_dir / "recipe.yaml", dump(recipe))
        write_environment(plan, trainer.steps)
    heartbeat("checking the teachers")
    measurements = Measurements(plan, trainer, metrics)
    measurements.check_teachers()
    if first == 0:
        measurements.probe_teachers()
        heartbeat("measuring the KL to the teachers")
        measurements.teacher_kl(0)
    assert plan.tokenizer is not None
    checkpoints = Checkpoints(
        run_dir,
        trainer.engine,
        plan.tokenizer,
        metrics,
        topology,
        provenance={"recipe": asdict(recipe), "manifest_key": plan.dataset.key},
        keep=recipe.checkpoint.keep,
        formats=recipe.checkpoint.formats,
    )
    stop.defer()
    trainer.run(
        first,
        metrics,
        lambda: stop.seen or requested(),
        heartbeat=heartbeat,
        validate=measurements.validate,
        save=checkpoints.save,
    )

"""The stage `distill`: a run from its recipe to its last checkpoint."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from pipeline.config.checks import advice
from pipeline.config.recipe import Recipe, dump
from pipeline.core.checkpoint_files import saved_step, step_of
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.log import log, rank
from pipeline.core.stage_status import record_status, status_file, write_status
from pipeline.core.terminal import by_timestep
from pipeline.distributed import flight_recorder
from pipeline.distributed.collectives import all_or_error
from pipeline.distributed.signals import StopSignals
from pipeline.distributed.topology import Topology, check_expert_parallel_groups, start
from pipeline.distributed.watchdog import Watchdog
from pipeline.models.forward import config_of
from pipeline.models.tokenizer import load_tokenizer
from pipeline.training import zero_state
from pipeline.training.build import build_trainer, fetch_models, fixed_noise_rows
from pipeline.training.checkpoint import Checkpoints, newest_intact
from pipeline.training.held_out import TIMESTEPS, kl_terms, teacher_kl, validation_loss
from pipeline.training.loop import Trainer
from pipeline.training.metrics import Metrics
from pipeline.training.monitor import build_monitor
from pipeline.training.preflight import Plan, environment, prepare
from pipeline.training.run_lock import finished, run_lock, stop_requests
from pipeline.training.teacher_checks import check_teachers, probe_teacher


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
                for warning in advice(recipe):
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
    plan: Plan,
    topology: Topology,
    stop: StopSignals,
    requested: Callable[[], bool],
    heartbeat: Callable[[str], None],
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
        file = run_dir / "environment.json"
        before = (read_json(file) or {}).get("started", [])
        started = {"started": [*before, datetime.now(UTC).isoformat("T", "seconds")]}
        write_json(file, environment(plan) | {"steps": trainer.steps} | started)
    heartbeat("checking the teachers")
    _check_teachers(plan, trainer, first)
    if first == 0:
        heartbeat("measuring the KL to the teachers")
        _measure_kl(plan, trainer, 0)
    checkpoints = Checkpoints(
        run_dir,
        trainer.engine,
        load_tokenizer(recipe.student.tokenizer),
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
        validate=partial(_validate, plan, trainer, metrics),
        save=checkpoints.save,
    )


def _check_teachers(plan: Plan, trainer: Trainer, first: int) -> None:
    """Refuses teachers that understand nothing; before step 0, writes what they know to teacher_probe.json."""
    recipe = plan.recipe
    models = [model for _, model in trainer.teachers]
    rows = partial(
        fixed_noise_rows,
        plan,
        student=trainer.engine.module.model.config,
        teachers=[config_of(model) for model in models],
        topology=trainer.topology,
    )
    check_teachers(list(zip(recipe.teachers, models, strict=True)), rows("train"))
    views = {"one_view": rows("validation")}
    if first or not recipe.teachers or not len(views["one_view"]):
        return
    views["two_views"] = rows("validation", compdemo_ratio=recipe.objective.compdemo.ratio)
    probes = {
        teacher.name: probe_teacher(teacher.name, model, k, views).to_json()
        for k, (teacher, model) in enumerate(zip(recipe.teachers, models, strict=True))
        if model is not None
    }
    if rank() == 0:
        write_json(Path(recipe.run_dir) / "teacher_probe.json", {"t": list(TIMESTEPS), "teachers": probes})


def _validate(plan: Plan, trainer: Trainer, metrics: Metrics, step: int) -> None:
    student = trainer.engine
    rows = fixed_noise_rows(plan, "validation", student.module.model.config, [], trainer.topology)
    if len(rows):
        student.eval()
        metrics.validation(step, validation_loss(student, student.module.cross_entropy_weight, rows))
        student.train()
    if step == trainer.steps:
        _measure_kl(plan, trainer, step)


def _measure_kl(plan: Plan, trainer: Trainer, step: int) -> None:
    """Says how far the student is from its teachers, and adds it to distance.json."""
    models = [model for _, model in trainer.teachers]
    configs = [config_of(model) for model in models]
    student = trainer.engine
    rows = fixed_noise_rows(plan, "validation", student.module.model.config, configs, trainer.topology)
    if not models or not len(rows):
        return
    terms = kl_terms(plan.recipe.teachers, plan.dataset.shared_vocab, models)
    student.eval()
    kl = teacher_kl(student, list(zip(terms, models, strict=True)), rows)
    student.train()
    if rank() == 0:
        path = Path(plan.recipe.run_dir) / "distance.json"
        write_json(path, (read_json(path) or {} if step else {}) | {str(step): kl})
    for name, by_t in kl.items():
        log.info(f"KL from {name}, step {step}  {by_timestep(by_t, '.3f')}")

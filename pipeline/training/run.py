"""A distillation run, from its plan to its last checkpoint: models, terms, data and loop put together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config.recipe import Recipe, Teacher, compdemo_ratio, dump
from pipeline.core.files import read_json, write_json, write_text
from pipeline.core.log import rank
from pipeline.core.run_directory import saved_step, status_file, step_of, write_status
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import BatchBuilder, TeacherSide
from pipeline.data.order import GlobalBatches
from pipeline.data.packing import Side, from_response, from_sequence
from pipeline.distributed.signals import StopSignals
from pipeline.distributed.topology import Topology, start
from pipeline.distributed.watchdog import Watchdog
from pipeline.method.tidal import cross_entropy_weight
from pipeline.models.families.llada2_moe import LLaDA2MoeModelLM
from pipeline.models.forward import use_flex
from pipeline.models.loading import load_student, load_teacher, load_tokenizer
from pipeline.training import checkpoint, zero_state
from pipeline.training.engine import build_engine, student_dtype
from pipeline.training.held_out import probe, validation_loss
from pipeline.training.loop import Trainer
from pipeline.training.metrics import Metrics
from pipeline.training.monitor import build_monitor
from pipeline.training.preflight import Plan, environment
from pipeline.training.step import StudentWithLoss
from pipeline.training.teacher_checks import check_teachers
from pipeline.training.teacher_kl import distance_terms, teacher_student_kl
from pipeline.training.terms import build_term, tidal_mix

_BLOCKS = {"sequence": from_sequence, "response": from_response}
_CROSS_ENTROPY = {"schedule": cross_entropy_weight, "uniform": torch.ones_like}


def train(plan: Plan, stop: StopSignals, timeout_minutes: float) -> None:
    """Trains to the last step. Raises StoppedEarly after a signal; ends the process where no rank can go on."""
    run_dir, limit = Path(plan.recipe.run_dir), timedelta(minutes=timeout_minutes)
    topology = start(limit + timedelta(minutes=1))  # the watchdog, which can say who hangs, is to speak first
    with Watchdog(topology, limit.total_seconds(), partial(_fail, run_dir)) as watchdog:
        _train(plan, topology, stop, watchdog.enter)


def _fail(run_dir: Path, message: str, exit_code: int) -> None:
    """Of the ranks that are left, the first to know writes the status file."""
    if not status_file(run_dir, "distill").exists():
        write_status(run_dir, "distill", "failed", exit_code, step=saved_step(run_dir), message=message)


def _train(plan: Plan, topology: Topology, stop: StopSignals, enter: Callable[[str], None]) -> None:
    recipe, run_dir = plan.recipe, Path(plan.recipe.run_dir)
    enter("the look at the checkpoints")
    kept = checkpoint.newest_intact(run_dir, topology)
    first = step_of(kept) if kept else 0
    enter("the loading of models")
    trainer = assemble(plan, topology)
    metrics = Metrics(
        run_dir / "metrics.jsonl",
        ["cross_entropy", *(t.name for t in recipe.teachers)],
        first=first,
        steps=trainer.steps,
        device=topology.device,
        monitor=build_monitor(plan.engine_config, run_dir),
    )
    if kept:
        enter(f"the loading of {kept.name}")
        trainer.step_on_nothing()
        metrics.take_up(zero_state.restore(trainer.engine, kept / "state", first))
        metrics.say(f"going on from {kept}")
    metrics.drop_later_lines()
    if rank() == 0:
        write_text(run_dir / "recipe.yaml", dump(recipe))
        write_json(run_dir / "environment.json", environment(plan) | {"steps": trainer.steps})
    enter("the teachers' check")
    check_teachers(trainer)
    if first == 0:
        enter("the teachers' probe")
        _probe_teachers(plan, trainer)
        _measure_distance(plan, trainer, 0)
    checkpoints = checkpoint.Checkpoints(
        run_dir,
        trainer.engine,
        load_tokenizer(recipe.student.tokenizer),
        metrics,
        topology,
        provenance={"recipe": asdict(recipe), "manifest_key": plan.manifest["key"]},
        keep=recipe.checkpoint.keep,
    )
    stop.defer()
    trainer.run(
        first,
        metrics,
        stop,
        enter=enter,
        validate=partial(_validate, plan, trainer, metrics),
        save=checkpoints.save,
    )


def assemble(plan: Plan, topology: Topology) -> Trainer:
    """Loads student and teachers, binds the recipe's terms, and wraps the student in its engine."""
    recipe = plan.recipe
    model = load_student(
        recipe.student.path,
        dtype=student_dtype(plan.engine_config),
        weights=recipe.student.weights,
        tokenizer=load_tokenizer(recipe.student.tokenizer),
        seed=recipe.data.seed,
    )
    teachers = [frozen_teacher(plan, teacher, topology) for teacher in recipe.teachers]
    if recipe.attention == "flex":
        for loaded in (model, *teachers):
            use_flex(loaded)
    rows = aligned_rows(plan, "train", recipe.teachers)
    builder = batch_builder(plan, model.config, [t.config for t in teachers], compdemo_ratio(recipe))
    batches = GlobalBatches(len(rows), recipe.optim.global_batch, recipe.data.seed)
    module = student_with_loss(plan, model, teachers)
    return Trainer(
        recipe,
        topology,
        engine=build_engine(module, plan.engine_config, recipe.optim, plan.accumulation),
        teachers=list(zip(module.terms, teachers, strict=True)),
        rows=rows,
        batches=batches,
        builder=builder,
        weights=torch.tensor([recipe.objective.cross_entropy_weight, *(t.weight for t in recipe.teachers)]),
        steps=recipe.optim.steps or batches.steps(recipe.optim.epochs),
        accumulation=plan.accumulation,
        after_step=_router_balance(model, recipe),
    )


def student_with_loss(plan: Plan, model: nn.Module, teachers: Sequence[nn.Module]) -> StudentWithLoss:
    """The student and its loss: the recipe's terms, one a teacher, bound to their heads."""
    recipe = plan.recipe
    if recipe.student.activation_checkpointing:
        # no dropout anywhere: there is no random state to put back
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    terms = [
        build_term(recipe.objective, teacher, shared, loaded.get_output_embeddings().weight)
        for teacher, shared, loaded in zip(recipe.teachers, plan.shared_vocab, teachers, strict=True)
    ]
    mix = tidal_mix(recipe.objective.tidal) if recipe.objective.tidal.cross_entropy else None
    return StudentWithLoss(model, terms, _CROSS_ENTROPY[recipe.objective.cross_entropy], mix)


def frozen_teacher(plan: Plan, teacher: Teacher, topology: Topology) -> nn.Module:
    """A teacher as the plan places it: on this rank's device, with its share of the experts."""
    return load_teacher(
        teacher.path,
        dtype=getattr(torch, teacher.dtype),
        device=topology.device,
        expert_parallel_size=plan.expert_parallel_size[teacher.name],
        weights=teacher.weights,
        tokenizer=load_tokenizer(teacher.tokenizer),
        seed=plan.recipe.data.seed,
    )


def _router_balance(model: nn.Module, recipe: Recipe) -> Callable[[], None]:
    """What follows every optimizer step: a trained MoE's experts are balanced, other students need nothing."""
    if isinstance(model, LLaDA2MoeModelLM):
        return partial(model.update_selection_bias, recipe.optim.selection_bias_rate)
    return lambda: None


def aligned_rows(plan: Plan, split: str, teachers: Sequence[Teacher]) -> AlignedRows:
    """The plan's rows of a split, with these teachers' sides."""
    return AlignedRows(Path(plan.recipe.data.aligned), plan.manifest, split, [t.name for t in teachers])


def batch_builder(plan: Plan, student: Any, teachers: Sequence[Any], compdemo_ratio: float | None) -> BatchBuilder:
    """How models are fed: the configs of the student and of the teachers that take part (all of them, or none)."""
    recipe, block = plan.recipe, plan.recipe.student.block_size
    sides = [
        TeacherSide(config.mask_token_id, teacher.input, block, shared)
        for config, teacher, shared in zip(teachers, recipe.teachers, plan.shared_vocab, strict=False)
    ]
    return BatchBuilder(
        Side(student.mask_token_id, recipe.student.input, block),
        sides,
        compdemo_ratio=compdemo_ratio,
        mask_unit=recipe.objective.mask_unit,
        eos_tail=student.eos_token_id if recipe.student.eos_tail else None,
        blocks=_BLOCKS[recipe.student.blocks],
    )


def _validate(plan: Plan, trainer: Trainer, metrics: Metrics, step: int) -> None:
    rows = aligned_rows(plan, "validation", [])
    if len(rows):
        builder = batch_builder(plan, trainer.engine.module.model.config, [], None)
        by_t = validation_loss(trainer.engine, rows, builder, trainer.topology, plan.recipe.optim.micro_tokens)
        metrics.validation(step, by_t)
    if step == trainer.steps:
        _measure_distance(plan, trainer, step)


def _measure_distance(plan: Plan, trainer: Trainer, step: int) -> None:
    """Says how far the student is from its teachers, and adds it to distance.json."""
    student = trainer.engine
    student.eval()
    kl = distance(
        plan, student, student.module.model.config, [model for _, model in trainer.teachers], trainer.topology
    )
    student.train()
    if not kl or rank() != 0:
        return
    path = Path(plan.recipe.run_dir) / "distance.json"
    write_json(path, (read_json(path) or {} if step else {}) | {str(step): kl})
    for name, by_t in kl.items():
        means = "  ".join(f"t={t}: {nats:.3f}" for t, nats in by_t.items())
        print(f"KL from {name} on held-out rows at step {step}: {means}", flush=True)


def distance(
    plan: Plan, student: Callable[..., torch.Tensor], config: Any, models: Sequence[nn.Module], topology: Topology
) -> dict[str, dict[str, float]]:
    """KL from each of the plan's teachers to the student on held-out rows, by t; {} without either. Collective.

    Args:
        student: `StudentWithLoss` in eval mode, or its engine; `config`: its model's.
        models: the plan's teachers.
    """
    recipe = plan.recipe
    rows = aligned_rows(plan, "validation", recipe.teachers)
    if not recipe.teachers or not len(rows):
        return {}
    teachers = list(zip(distance_terms(recipe.teachers, plan.shared_vocab, models), models, strict=True))
    builder = batch_builder(plan, config, [model.config for model in models], None)
    return teacher_student_kl(student, teachers, rows, builder, topology, recipe.optim.micro_tokens)


def _probe_teachers(plan: Plan, trainer: Trainer) -> None:
    """Says what the teachers know before anything is trained on it, and writes teacher_probe.json."""
    recipe = plan.recipe
    rows = aligned_rows(plan, "validation", recipe.teachers)
    if not recipe.teachers or not len(rows):
        return
    models = [model for _, model in trainer.teachers]
    build = partial(batch_builder, plan, trainer.engine.module.model.config, [m.config for m in models])
    views = {"one_view": build(None), "two_views": build(recipe.objective.compdemo.ratio)}
    named = [(t.name, m) for t, m in zip(recipe.teachers, models, strict=True)]
    known = probe(named, rows, views, trainer.topology, recipe.optim.micro_tokens)
    if rank() != 0:
        return
    write_json(Path(recipe.run_dir) / "teacher_probe.json", known)
    for name, facts in known["teachers"].items():
        print(
            f"teacher {name} on held-out rows: nats a token (and accuracy) by t; guessing gives {facts['uniform']:.2f}"
        )
        for view in views:
            pairs = zip(known["t"], facts[view], facts[f"accuracy_{view}"], strict=True)
            print(f"  {view:9}  " + "  ".join(f"t={t}: {nats:.2f} ({right:.0%})" for t, nats, right in pairs))
        if max(facts["one_view"]) < facts["uniform"]:
            print(
                f"WARNING teacher {name} is worse than guessing: check its tokenizer, template, weights and input mask"
            )
    sys.stdout.flush()

"""Where each objective pulls a student that knows the task: `python -m demo.study.mechanism`, after the teachers are made.

For every teacher and strategy of the reliability study, on clean held-out rows under fixed noise, by t: the size of the gradient of the
distillation term in the student's weights, its cosine with the gradient of the cross-entropy of the truth, and the share of
micro-batches ("steps") in which the two point apart, so that a step along the term makes the truth less likely. The student is the demo's, which
has learnt to add; nothing is trained. Writes the file `mechanism` that the dial names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from demo.study.teachers import DIAL, ENGINE, TIMEOUT_MINUTES, Dial, teachers_of
from pipeline.alignment.build import align
from pipeline.config.recipe import Objective, Recipe, Teacher, compdemo_ratio
from pipeline.core.errors import exit_code, leave
from pipeline.core.files import write_json
from pipeline.core.log import log
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.distributed.topology import start
from pipeline.experiments.command_line import parse_study
from pipeline.experiments.workers import set_environment
from pipeline.models.loading import load_teacher
from pipeline.training.build import fixed_noise_rows, frozen_teacher, student_with_loss
from pipeline.training.environment import machine
from pipeline.training.held_out import TIMESTEPS, FixedNoiseRows
from pipeline.training.preflight import prepare
from pipeline.training.step import StudentWithLoss

PROGRESS = 0.5
"""Of training, for lambda."""
MICRO_TOKENS = 2048
"""About eight rows."""

Pulls = dict[str, list[float]]
"""`size`, `cosine`, `wrong`: a value for each of TIMESTEPS."""


def main() -> None:
    """Measures every teacher and objective of a dial's study once; the study's data play no part."""
    set_environment(1)
    dial = Dial.read(*sys.argv[1:2] or [DIAL])
    alone, (study, _) = teachers_of(dial.study), parse_study(["--study", dial.study])
    cells: dict[str, Recipe] = {}
    seen: list[tuple[Teacher, Objective]] = []
    for variant in study.variants:
        recipe = study.run(variant, 0)
        for teacher in recipe.teachers:
            if (teacher, recipe.objective) not in seen:
                seen.append((teacher, recipe.objective))
                cells[variant] = replace(recipe, data=alone[teacher.name].data)
    for recipe in alone.values():
        align(recipe, Ranks(), 1, 4096)
    measured = {variant: pulls(recipe) for variant, recipe in cells.items()}
    record = {"environment": machine(), "t": list(TIMESTEPS), "progress": PROGRESS}
    write_json(Path(dial.mechanism), {**record, "cells": measured})


def pulls(recipe: Recipe) -> Pulls:
    """Of the recipe's one teacher and strategy on the student of the recipe, as it is."""
    recipe = replace(recipe, student=replace(recipe.student, weights="pretrained"))
    plan, topology = prepare(recipe, ENGINE), start(timedelta(minutes=TIMEOUT_MINUTES))
    teacher = frozen_teacher(plan, recipe.teachers[0], topology)
    student = load_teacher(recipe.student.path, dtype=torch.float32, device=topology.device).requires_grad_(True)
    rows = fixed_noise_rows(plan, "validation", topology, compdemo_ratio=compdemo_ratio(recipe))
    module = student_with_loss(plan, student, [teacher])
    made: Pulls = {"size": [], "cosine": [], "wrong": []}
    for t in TIMESTEPS:
        pairs = gradients(module, teacher, replace(rows, micro_tokens=MICRO_TOKENS), t)
        cosines = [float(torch.cosine_similarity(term, truth, 0)) for term, truth in pairs]
        made["size"].append(mean(float(term.norm()) for term, _ in pairs))
        made["cosine"].append(mean(cosines))
        made["wrong"].append(mean(float(cosine < 0) for cosine in cosines))
    log.info(f"{recipe.name}: wrong {made['wrong']}")
    return made


def gradients(
    module: StudentWithLoss, teacher: torch.nn.Module, rows: FixedNoiseRows, t: float
) -> Sequence[tuple[Tensor, Tensor]]:
    """Of each micro-batch at t: gradients of the teacher's term and of the truth's cross-entropy, flat, means over their tokens."""
    (term,), parameters, made = module.terms, list(module.model.parameters()), []
    for batch in rows.batches(t):
        if not (count := term.count(batch.teachers[0])):
            continue
        output = term.teacher_forward(teacher, batch.teachers[0])
        truth, taught = module(batch, [output], PROGRESS)
        flat = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (taught / count, truth / len(batch.targets))
        ]
        made.append((flat[0], flat[1]))
    return made


if __name__ == "__main__":
    leave(exit_code("mechanism", main))

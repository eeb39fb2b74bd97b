"""What docs/reliability.md says of the study on real text beside its results: `python -m demo.text.measure`, after its cells.

Writes demo/text/results/teachers.json (steps, score and checksum of each teacher's weights, probe of each reading) and mechanism.json
(where each objective pulls the start of seed 0, as demo.study.mechanism measures it), both on 64 validation rows: the cells have fewer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from demo.study.mechanism import PROGRESS, pulls
from demo.study.teachers import probe, teachers_of, weights_of
from pipeline.alignment.build import align
from pipeline.config.recipe import Recipe, Validation
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import exit_code, leave
from pipeline.core.files import file_sha256, write_json
from pipeline.core.run_directory import read_metrics
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.evaluation.results import read_scores
from pipeline.experiments.command_line import parse_study
from pipeline.experiments.workers import set_environment
from pipeline.training.environment import machine
from pipeline.training.held_out import TIMESTEPS

RESULTS, STUDY, TRAINED = Path("demo/text/results"), "demo/text/study.yaml", Path("runs/study/text-training")
HELD_OUT = Validation("data/text/validation.jsonl", 64)


def main() -> None:
    """Measures every reading of both teachers, and the distilled cells of a seed before their first step."""
    set_environment(1)
    alone = {
        name: replace(recipe, data=replace(recipe.data, validation=HELD_OUT))
        for name, recipe in teachers_of(STUDY).items()
    }
    for recipe in alone.values():
        align(recipe, Ranks(), 1, 4096)
    write_json(RESULTS / "teachers.json", {name: measured(recipe) for name, recipe in alone.items()})
    study = parse_study(["--study", STUDY])[0]
    start = str(complete_checkpoints(study.start_dir(0))[-1] / "export")
    cells = {variant: study.run(variant, 0, start) for variant in study.by_name if variant != study.baseline}
    by_variant = {v: pulls(replace(recipe, data=alone[recipe.teachers[0].name].data)) for v, recipe in cells.items()}
    about = {"environment": machine(), "t": list(TIMESTEPS), "progress": PROGRESS}
    write_json(RESULTS / "mechanism.json", {**about, "cells": by_variant})


def measured(recipe: Recipe) -> dict[str, Any]:
    """Of the recipe's one teacher: steps and nats per byte of its weights, and what it knows in the recipe's reading."""
    weights, known = weights_of(recipe), probe(recipe)
    run = TRAINED / weights.parent.name
    (score,) = read_scores(run / "evaluation" / complete_checkpoints(run)[-1].name).values()
    return {
        "steps": [line["step"] for line in read_metrics(run) if line["kind"] == "train"][-1],
        "nats_per_byte": score.value,
        "sha256": file_sha256(weights),
        "probe": {"t": known.t, **known.to_json()},
    }


if __name__ == "__main__":
    leave(exit_code("measure", main))

"""Makes the teachers of the reliability study and says how reliable each is: `python -m demo.study.teachers`.

FILE (default: demo/study/reliability/teachers.yaml) is the dial. What is there already is not made again. Weights go to the folder
that the file names; what was measured of a set of teachers (exact match on the test problems, the probe by t with one view and
two) is added to the file `measured`, which has one entry for every set of weights.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pipeline.alignment.build import align
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.checkpoint_files import complete_checkpoints, step_of
from pipeline.core.errors import BadInput, exit_code, leave
from pipeline.core.files import file_sha256, read_json, write_json
from pipeline.core.log import log
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.distributed.signals import StopSignals
from pipeline.distributed.topology import start
from pipeline.evaluation.results import read_scores
from pipeline.evaluation.runner import evaluate
from pipeline.experiments.command_line import parse_study
from pipeline.experiments.workers import set_environment
from pipeline.training.build import fixed_noise_rows, frozen_teacher
from pipeline.training.environment import machine
from pipeline.training.preflight import prepare
from pipeline.training.run import distill
from pipeline.training.teacher_checks import probe_teacher
from pipeline.training.teacher_probe import TeacherProbe

DIAL = "demo/study/reliability/teachers.yaml"
ENGINE = Path("ds_configs/zero0.json")
TIMEOUT_MINUTES = 30.0


@dataclass(frozen=True)
class Setting:
    """One setting of the dial."""

    fields: Mapping[str, Any]
    """of the training's recipe"""
    of: str = ""
    """whose training it is a checkpoint of; its own without"""
    reaches: float = 0.0
    """exact match on the validation problems that its checkpoint is the first to have"""


@dataclass(frozen=True)
class Dial:
    """The file."""

    study: str
    """whose teachers these are"""
    folder: str
    """of the weights"""
    measured: str
    """where what was measured goes"""
    mechanism: str
    """where what demo.study.mechanism measures goes"""
    architectures: Mapping[str, str]
    """name: recipe that trains it"""
    teachers: Mapping[str, Setting]

    @classmethod
    def read(cls, path: str) -> Dial:
        """Raises BadInput for a file that cannot be read or lacks something."""
        try:
            entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            teachers = {name: Setting(**{"fields": {}, **setting}) for name, setting in entries.pop("teachers").items()}
            return cls(**entries, teachers=teachers)
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise BadInput(f"{path}: {' '.join(str(error).split())}") from None


def main() -> None:
    """Trains what is missing, then measures every teacher that the study names; or, with --measure, those that are there."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("dial", nargs="?", default=DIAL, help="the file")
    p.add_argument("--measure", action="store_true", help="train none")
    flags = p.parse_args()
    set_environment(1)
    dial, stop = Dial.read(flags.dial), StopSignals()
    for architecture, recipe in dial.architectures.items():
        for name in () if flags.measure else dial.teachers:
            make(dial, architecture, recipe, name, stop)
    recipes = {name: recipe for name, recipe in teachers_of(dial.study).items() if weights_of(recipe).is_file()}
    weights = {name: file_sha256(weights_of(recipe)) for name, recipe in recipes.items()}
    path = Path(dial.measured)
    sets: list[dict[str, Any]] = read_json(path) or []
    if not any(weights.items() <= known["weights"].items() for known in sets):
        others = [known for known in sets if not known["weights"].items() <= weights.items()]  # than a part of this one
        write_json(path, [*others, {**measured_in(recipes, Path(dial.folder)), "weights": weights}])


def measured_in(recipes: Mapping[str, Recipe], folder: Path) -> dict[str, Any]:
    """A set of teachers: where it was measured, steps of the trainings that are known, and what is known of each."""
    teachers = {name: measure(recipe, folder) for name, recipe in recipes.items()}
    files = {name: weights_of(recipe).parent / "STEP" for name, recipe in recipes.items()}
    steps = {name: int(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    return {"environment": machine(), "steps": steps, "teachers": teachers}


def make(dial: Dial, architecture: str, recipe: str, name: str, stop: StopSignals) -> None:
    """Trains a teacher, or takes it from another's training, into FOLDER/ARCHITECTURE_NAME."""
    setting, into = dial.teachers[name], Path(dial.folder) / f"{architecture}_{name}"
    source = setting.of or name
    plan = training(dial, architecture, recipe, source)
    if not into.is_dir():
        align(plan, Ranks(), 1, 4096)
        distill(plan, ENGINE, stop, TIMEOUT_MINUTES)
        stop.settle()
        checkpoint = (
            first_reaching(plan, setting.reaches) if setting.of else complete_checkpoints(Path(plan.run_dir))[-1]
        )
        unfinished = into.with_name(f".{into.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(checkpoint / "export", unfinished)
        (unfinished / "STEP").write_text(str(step_of(checkpoint)), encoding="utf-8")
        unfinished.rename(into)


def training(dial: Dial, architecture: str, recipe: str, name: str) -> Recipe:
    """The recipe of a training, in a run directory of its own."""
    fields = {**dial.teachers[name].fields, "run_dir": f"{dial.folder}/training/{architecture}_{name}"}
    words = [word for field, value in fields.items() for word in (f"--{field}", str(value))]
    return parse(parser(""), ["--recipe", recipe, *words])[0]


def first_reaching(recipe: Recipe, bar: float) -> Path:
    """The first checkpoint whose exact match on the validation problems is at least `bar`. Raises BadInput where none is."""
    chosen = replace(recipe, evaluation=replace(recipe.evaluation, tasks=["study_validation"]))
    for checkpoint in complete_checkpoints(Path(recipe.run_dir)):
        score = exact_match(chosen, str(checkpoint / "export"), f"validation-{checkpoint.name}")
        log.info(f"{checkpoint}: {score:.3f}")
        if score >= bar:
            return checkpoint
    raise BadInput(f"{recipe.run_dir}: no checkpoint reaches {bar}")


def exact_match(recipe: Recipe, folder: str, label: str) -> float:
    """Of the model in a folder, on the recipe's one task."""
    evaluate(recipe, folder, label)
    (score,) = read_scores(Path(recipe.run_dir) / "evaluation" / label).values()
    return float(score.value)  # type: ignore[arg-type]  # a task that generates text has one


def teachers_of(study_file: str) -> dict[str, Recipe]:
    """Every teacher of a study by name, as a recipe that has it alone, with a dataset of its own."""
    study, _ = parse_study(["--study", study_file])
    first: dict[str, Recipe] = {}
    for variant in study.planned():
        recipe = study.run(variant, 0)
        for teacher in recipe.teachers:
            data = replace(recipe.data, aligned=f"runs/aligned/{study.name}-{teacher.name}")
            first.setdefault(teacher.name, replace(recipe, data=data, teachers=[teacher]))
    return first


def weights_of(recipe: Recipe) -> Path:
    """The file of the recipe's one teacher."""
    return Path(recipe.teachers[0].path) / "model.safetensors"


def measure(recipe: Recipe, into: Path) -> dict[str, Any]:
    """Exact match on the test problems, and the probe, of the recipe's one teacher."""
    align(recipe, Ranks(), 1, 4096)
    folder, known = weights_of(recipe).parent, probe(recipe)
    scored = replace(recipe, run_dir=str(into))
    return {
        "exact_match": exact_match(scored, str(folder), folder.name),
        "probe": {"t": known.t, **known.to_json()},
    }


def probe(recipe: Recipe) -> TeacherProbe:
    """What the recipe's one teacher knows of the validation rows, with one view and with two."""
    plan, topology = prepare(recipe, ENGINE), start(timedelta(minutes=TIMEOUT_MINUTES))
    model = frozen_teacher(plan, recipe.teachers[0], topology)
    rows = partial(fixed_noise_rows, plan, "validation", topology)
    ratio = recipe.objective.compdemo.ratio
    return probe_teacher(
        recipe.teachers[0].name, model, 0, {"one_view": rows(), "two_views": rows(compdemo_ratio=ratio)}
    )


if __name__ == "__main__":
    leave(exit_code("teachers", main))

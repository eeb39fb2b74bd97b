"""What no machine could run, and what the authors of TIDE advise against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput

# what a line of metrics.jsonl and the counts of a manifest have beside the teachers
RESERVED_NAMES = {
    "kind", "step", "loss", "cross_entropy", "grad_norm", "lr", "lambda", "tokens", "seconds", "tokens_per_second",
    "memory_gb", "by_t", "student", "maskable", "certainty",
}  # fmt: skip

MOST_REPEATS = 1_000
"""Of a source's rows; above that a global batch holds little else."""


def check(recipe: Recipe) -> None:
    """Refuses what no machine could run. Raises BadInput with all problems in one line."""
    o, optim, names = recipe.objective, recipe.optim, [t.name for t in recipe.teachers]
    ranges: list[tuple[str, Callable[[Any], bool], dict[str, Any]]] = [
        ("above 0", lambda x: x > 0, {
            "student.block_size": recipe.student.block_size,
            "data.student_length": recipe.data.student_length,
            "data.validation.rows": recipe.data.validation and recipe.data.validation.rows,
            "optim.lr": optim.lr,
            "optim.steps": optim.steps,
            "optim.epochs": optim.epochs,
            "optim.global_batch": optim.global_batch,
            "optim.micro_tokens": optim.micro_tokens,
            "objective.temperature": o.temperature,
            "objective.certainty.temperature": o.certainty.temperature,
            "logging.every_steps": recipe.logging.every_steps,
            "checkpoint.keep": recipe.checkpoint.keep,
            "evaluation.batch_size": recipe.evaluation.batch_size,
            "evaluation.limit": recipe.evaluation.limit,
            **{f"teachers.{t.name}.length": t.length for t in recipe.teachers},
            **{f"teachers.{t.name}.block_size": t.block_size for t in recipe.teachers},
            **{f"teachers.{t.name}.top_k": t.top_k for t in recipe.teachers},
        }),
        ("0 or more", lambda x: x >= 0, {
            "data.seed": recipe.data.seed,
            "objective.cross_entropy_weight": o.cross_entropy_weight,
            "objective.certainty.weight": o.certainty.weight,
            "optim.clip": optim.clip,
            "optim.weight_decay": optim.weight_decay,
            "optim.selection_bias_rate": optim.selection_bias_rate,
            "checkpoint.every_steps": recipe.checkpoint.every_steps,
            "checkpoint.every_minutes": recipe.checkpoint.every_minutes,
            "evaluation.fewshot": recipe.evaluation.fewshot,
            "logging.validate_every": recipe.logging.validate_every,
            **{f"teachers.{t.name}.weight": t.weight for t in recipe.teachers},
        }),
        ("between 0 and 1", lambda x: 0 <= x <= 1, {
            "optim.warmup": optim.warmup,
            "optim.final": optim.final,
            "objective.compdemo.ratio": o.compdemo.ratio,
            "objective.tidal.init": o.tidal.init,
            "objective.tidal.maximum": o.tidal.maximum,
        }),
        ("at least 0 and below 1", lambda x: 0 <= x < 1, {
            **{f"optim.betas[{i}]": x for i, x in enumerate(optim.betas)},
            **{f"data.sources.{source.name}.holdout": source.holdout for source in recipe.data.sources},
        }),
        (f"above 0 and at most {MOST_REPEATS:,}", lambda x: 0 < x <= MOST_REPEATS, {
            f"data.sources.{source.name}.weight": source.weight for source in recipe.data.sources
        }),
        ("a positive multiple of 4", lambda x: x > 0 and x % 4 == 0, {
            "evaluation.likelihood_samples": recipe.evaluation.likelihood_samples,
        }),
        ("above 0 and below 0.5", lambda x: 0 < x < 0.5, {"objective.teacher_floor": o.teacher_floor}),
    ]  # fmt: skip
    problems = [
        f"{name} is {value}, must be {words}"
        for words, fits, values in ranges
        for name, value in values.items()
        if value is not None and not fits(value)
    ]
    if not recipe.name:
        problems.append("name is empty: it names the run directory")
    if "/" in recipe.name or not recipe.name.isprintable() or recipe.name in (".", ".."):
        problems.append(f"name {recipe.name!r} is no plain name: it names the run directory")
    if recipe.student.block_size > recipe.data.student_length:
        problems.append(
            f"student.block_size {recipe.student.block_size} is above data.student_length {recipe.data.student_length}"
        )
    if (optim.steps is None) == (optim.epochs is None):
        problems.append("give optim.steps or optim.epochs (one of the two)")
    if len(set(names)) < len(names):
        problems.append(f"teachers need different names, not {names}")
    problems += [f"teacher name {n!r}: letters, digits and _, no digit in front" for n in names if not n.isidentifier()]
    problems += [  # teachers name metrics, counts of the manifest and columns (the student's side of teacher a is a_student_...)
        f"teacher name {name!r} is taken: it would name another column or metric"
        for name in names
        if name in RESERVED_NAMES or name.endswith("_student")
    ]
    if recipe.student.eos_tail and recipe.student.input == "full":
        problems.append("student.eos_tail fills blocks: it needs student.input block")
    if not 0 < o.t_range[0] < o.t_range[1] <= 1:
        problems.append(f"objective.t_range is {list(o.t_range)}, must be two rising numbers above 0 and at most 1")
    if o.compdemo.enabled:
        problems += [
            f"teacher {t.name} reads from left to right (input: causal): what CompDemo would reveal to it lies to its right or is"
            " read anyway, so it has one view: set objective.compdemo.enabled false"
            for t in recipe.teachers
            if t.causal
        ]
    problems += [
        f"teacher {t.name}: answers stored needs input causal; those of other inputs depend on the noise"
        for t in recipe.teachers
        if t.stored and not t.causal
    ]
    if not any([o.cross_entropy_weight, *(t.weight for t in recipe.teachers)]):
        problems.append("no loss has a weight: set objective.cross_entropy_weight, or a teacher's weight")
    if problems:
        raise BadInput("; ".join(problems))


def advice(recipe: Recipe) -> list[str]:
    """What runs, but maybe not as meant: teachers of weight 0, and what the authors of TIDE advise against."""
    warnings = [f"teacher {t.name} has weight 0: it is left out of the run" for t in recipe.teachers if not t.weight]
    if len(warnings) < len(recipe.teachers) and recipe.objective.strategy in ("reverse_tidal", "reverse_calm_tidal"):
        warnings.append(
            f"objective.strategy {recipe.objective.strategy}: TIDAL with a reverse objective is advised against; its "
            "detached target stays close to the student, so the teacher's signal scales with lambda"
        )
    return warnings

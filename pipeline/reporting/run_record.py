"""Everything the report reads from one run directory. Whatever is missing there is empty here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.alignment.manifest_summary import statistics_rows
from pipeline.config.recipe import Recipe, Tidal
from pipeline.core.errors import BadInput, one_line
from pipeline.core.files import read_json
from pipeline.core.run_directory import read_metrics
from pipeline.evaluation.results import Score, read_scores
from pipeline.evaluation.sweep import swept_tasks
from pipeline.training.teacher_probe import TeacherProbe, read_probes

SCHEDULE = ("init", "maximum", "axes", "schedule")
"""Fields of TIDAL that say what lambda is."""


@dataclass(frozen=True)
class ValidationLine:
    """One validation line of metrics.jsonl."""

    step: int
    loss: float
    by_t: Mapping[str, float]


@dataclass(frozen=True)
class Alignment:
    """The aligned dataset in numbers, each with its name, and its training shards."""

    rows: list[tuple[str, float]]
    tokens: list[tuple[str, float]]
    statistics: list[tuple[str, str]]
    shards: list[Path]
    shared_vocab: Mapping[str, int]
    """By teacher: ids that mean the same on both sides; 0 with another tokenizer."""


@dataclass(frozen=True)
class RunRecord:
    """One run directory."""

    folder: Path
    recipe: str
    """The resolved recipe the run was started with, as YAML; "" without one. The next eight fields are read from it."""
    student_tokenizer: str
    teachers: Mapping[str, str]
    """Name -> tokenizer."""
    strategy: str
    """`bd3lm` for a run without teachers."""
    temperature: float | None
    tidal: Tidal | None
    tasks: list[str]
    validated: bool
    """Whether there are held-out rows."""
    aligned: Path
    steps: int | None
    environment: str
    """environment.json as YAML; "" without one. The next six fields are read from it."""
    device: str
    commit: str
    started: list[str]
    """When each start of the training began: ISO 8601, UTC."""
    world_size: int | None
    zero_stage: int | None
    expert_parallel_size: Mapping[str, int]
    seconds: Mapping[str, float]
    """Of every stage that has a status file, `report` itself left out."""
    training: list[dict[str, float]]
    """Lines of metrics.jsonl, in order of steps; of a step that a resumed run did again, the later line."""
    validation: list[ValidationLine]
    probe: Mapping[str, TeacherProbe]
    """By teacher."""
    teacher_kl: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Step -> teacher -> t -> KL(teacher || student)."""
    alignment: Alignment | None
    evaluations: Mapping[str, Mapping[str, Score]]
    """Step or label -> task -> score, sorted by name."""

    @property
    def last_step(self) -> str:
        """The newest evaluated step's name; "" without one."""
        return max((name for name in self.evaluations if name.startswith("step-")), default="")


def read_run(folder: Path, fallback: Recipe | None = None) -> RunRecord:
    """Reads a run directory; the fallback stands in where it holds no recipe.yaml.

    Raises BadInput for a file that is not JSON.
    """
    file = folder / "recipe.yaml"
    recipe = _read_yaml(file) if file.is_file() else asdict(fallback) if fallback else {}
    environment = read_json(folder / "environment.json") or {}
    try:
        of_recipe = _of_recipe(recipe)
    except (AttributeError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None
    metrics = {(line["step"], line.pop("kind")): line for line in read_metrics(folder)}
    lines = sorted(metrics.items())
    status = {path.stem: read_json(path) for path in sorted((folder / "status").glob("*.json"))}
    probe = read_json(folder / "teacher_probe.json")
    return RunRecord(
        folder=folder,
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
        **of_recipe | {"steps": environment.get("steps") or of_recipe["steps"]},
        environment=yaml.safe_dump(environment, sort_keys=False) if environment else "",
        device=environment.get("device") or "",
        commit=environment.get("commit") or "",
        started=environment.get("started") or [],
        world_size=environment.get("world_size"),
        zero_stage=environment.get("zero_stage"),
        expert_parallel_size=environment.get("expert_parallel_size") or {},
        seconds={stage: s["seconds"] for stage, s in status.items() if stage != "report" and "seconds" in s},
        training=[line for (_, kind), line in lines if kind == "train"],
        validation=[ValidationLine(**line) for (_, kind), line in lines if kind == "validation"],
        probe=read_probes(probe) if probe else {},
        teacher_kl=read_json(folder / "distance.json") or {},
        alignment=_alignment(of_recipe["aligned"]),
        evaluations=_evaluations(folder / "evaluation"),
    )


def _damaged(file: Path, error: Exception) -> BadInput:
    return BadInput(f"{file} is damaged ({one_line(error)}): put back the one that the run was started with")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(file, error) from None
    if not isinstance(content, dict):
        raise BadInput(f"{file} holds no recipe: put back the one that the run was started with")
    return content


def _of_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RunRecord` that a resolved recipe says."""
    objective, data = recipe.get("objective", {}), recipe.get("data", {})
    teachers = {teacher["name"]: teacher.get("tokenizer", "") for teacher in recipe.get("teachers", [])}
    return {
        "student_tokenizer": recipe.get("student", {}).get("tokenizer", ""),
        "teachers": teachers,
        "strategy": objective.get("strategy", "") if teachers else "bd3lm",
        "temperature": objective["temperature"] if "tidal" in objective else None,
        "tidal": Tidal(**{name: objective["tidal"][name] for name in SCHEDULE}) if "tidal" in objective else None,
        "tasks": recipe.get("evaluation", {}).get("tasks", []),
        "validated": bool(data.get("validation")) or any(source.get("holdout") for source in data.get("sources", [])),
        "aligned": Path(data.get("aligned", "")),
        "steps": recipe.get("optim", {}).get("steps"),
    }


def _alignment(folder: Path) -> Alignment | None:
    manifest = read_json(folder / "manifest.json")
    if not manifest:
        return None
    rows, tokens = (list(flatten(manifest.get(part, {}))) for part in ("rows", "tokens"))
    statistics = [
        (f"{name}: {label}", value)
        for name, known in manifest.get("statistics", {}).items()
        for label, value in statistics_rows(known)
    ]
    shards = [folder / s["file"] for s in manifest.get("shards", []) if s["split"] == "train" and s["rows"]]
    shared_vocab = {name: side.get("shared_vocab", 0) for name, side in manifest.get("teachers", {}).items()}
    return Alignment(rows, tokens, statistics, shards, shared_vocab)


def _evaluations(folder: Path) -> dict[str, dict[str, Score]]:
    """Without scores of generated programs that nobody has run yet; a step may have been swept alone."""
    scores = {path.name: read_scores(path) for path in sorted(folder.glob("*/"))}
    scored = {name: {t: s for t, s in by_task.items() if s.value is not None} for name, by_task in scores.items()}
    return {name: by_task for name, by_task in scored.items() if by_task or swept_tasks(folder / name)}


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested objects, each with the names on the way to it."""
    for name, entry in value.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(entry, dict):
            yield from flatten(entry, f"{label}: ")
        else:
            yield label, entry

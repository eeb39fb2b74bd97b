"""Everything the report reads from one run directory. Whatever is missing there is empty here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.files import read_json, read_json_lines
from pipeline.core.run_directory import read_metrics

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        recipe: the resolved recipe the run was started with, {} without one.
        seconds: of every stage that has a status file, `report` itself left out.
        training, validation: lines of metrics.jsonl by kind, in order of steps; of a step that a resumed run did again,
            the later line.
        probe: teacher_probe.json, {} without one.
        distance: distance.json, {} without one.
        manifest: of the run's aligned dataset, {} without one.
        evaluations: {step or label: {task: the contents of TASK.json}}, sorted by name.
    """

    folder: Path
    recipe: Record
    environment: Record
    seconds: dict[str, float]
    training: list[Record]
    validation: list[Record]
    probe: Record
    distance: Record
    manifest: Record
    evaluations: dict[str, dict[str, Record]]

    @property
    def strategy(self) -> str:
        """`bd3lm` for a run without teachers."""
        return self.recipe.get("objective", {}).get("strategy", "") if self.teachers else "bd3lm"

    @property
    def teachers(self) -> list[str]:
        return [teacher["name"] for teacher in self.recipe.get("teachers", [])]

    @property
    def aligned(self) -> Path:
        """Folder of the aligned dataset."""
        return Path(self.recipe.get("data", {}).get("aligned", ""))

    @property
    def last_step(self) -> str | None:
        """The newest evaluated step's name."""
        return max((name for name in self.evaluations if name.startswith("step-")), default=None)

    def samples(self, name: str, task: str) -> list[Record]:
        """The evaluated samples of a task, in order; [] without a file."""
        return read_json_lines(self.folder / "evaluation" / name / f"{task}.samples.jsonl")


def read_run(folder: Path, recipe: Record | None = None) -> Run:
    """Reads a run directory; `recipe` stands in where it holds no recipe.yaml.

    Raises BadInput for a file that is not JSON.
    """
    resolved = folder / "recipe.yaml"
    recipe = yaml.safe_load(resolved.read_text(encoding="utf-8")) if resolved.is_file() else recipe or {}
    metrics = {(line["step"], line["kind"]): line for line in read_metrics(folder)}
    metrics = [metrics[key] for key in sorted(metrics)]
    status = {path.stem: read_json(path) for path in sorted((folder / "status").glob("*.json"))}
    evaluations: dict[str, dict[str, Record]] = {}
    for path in sorted((folder / "evaluation").glob("*/*.json")):
        score = read_json(path)
        if score["value"] is not None:  # generated programs that nobody has run yet
            evaluations.setdefault(path.parent.name, {})[path.stem] = score
    return Run(
        folder=folder,
        recipe=recipe,
        environment=read_json(folder / "environment.json") or {},
        seconds={stage: s["seconds"] for stage, s in status.items() if stage != "report" and "seconds" in s},
        training=[line for line in metrics if line["kind"] == "train"],
        validation=[line for line in metrics if line["kind"] == "validation"],
        probe=read_json(folder / "teacher_probe.json") or {},
        distance=read_json(folder / "distance.json") or {},
        manifest=read_json(Path(recipe.get("data", {}).get("aligned", "")) / "manifest.json") or {},
        evaluations=evaluations,
    )


def by_label(run: Run, baseline: Run | None) -> dict[str, Run]:
    """The runs under the names that the report gives them; a run alone and without teachers is an undistilled one."""
    if baseline:
        return {"undistilled": baseline, "distilled": run}
    return {"distilled" if run.teachers else "undistilled": run}

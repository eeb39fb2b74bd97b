"""What docs/reliability.md says of the study on real text beside its results: `python -m demo.text.measure`, after its cells.

Writes demo/text/results/teachers.json (steps, score and checksum of each teacher's weights) and mechanism.json (where each objective
pulls the start of seed 0, as demo.study.mechanism measures it).
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo.study.mechanism import PROGRESS, pulls
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import exit_code
from pipeline.core.files import file_sha256, write_json
from pipeline.core.run_directory import read_metrics
from pipeline.evaluation.results import read_scores
from pipeline.experiments.workers import set_environment
from pipeline.study import parse_study
from pipeline.training.environment import machine
from pipeline.training.held_out import TIMESTEPS

RESULTS, TRAINED = Path("demo/text/results"), Path("runs/study/text-training")


def main() -> None:
    """Measures both teachers and the sixteen distilled cells of a seed."""
    set_environment(1)
    teachers = {}
    for name in ("moe", "dense"):
        run = TRAINED / name
        (score,) = read_scores(run / "evaluation" / complete_checkpoints(run)[-1].name).values()
        weights = file_sha256(Path("runs/study/text-teachers") / name / "model.safetensors")
        steps = [line["step"] for line in read_metrics(run) if line["kind"] == "train"][-1]
        teachers[name] = {"steps": steps, "nats_per_byte": score.value, "sha256": weights}
    write_json(RESULTS / "teachers.json", teachers)
    study = parse_study(["--study", "demo/text/study.yaml"])[0]
    start = str(complete_checkpoints(study.start_dir(0))[-1] / "export")
    cells = {name: pulls(study.run(name, 0, start)) for name in study.by_name if name != study.baseline}
    found = {"environment": machine(), "t": list(TIMESTEPS), "progress": PROGRESS, "cells": cells}
    write_json(RESULTS / "mechanism.json", found)


if __name__ == "__main__":
    sys.exit(exit_code("measure", main))

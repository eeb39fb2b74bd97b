"""The report stage: report.html and summary.json of a run, compared with an undistilled run and the teacher.

`python pipeline/report.py --recipe demo --baseline runs/demo-undistilled`
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import write_json, write_text
from pipeline.core.run_directory import record_status
from pipeline.reporting.run_record import Record, read_run
from pipeline.reporting.summary import interval, scores, summary


def main() -> None:
    """Reads the run directories, writes the report, prints the scores."""
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--baseline", type=str, default="", help="run directory of the undistilled run, to compare with")
    p.add_argument("--teacher-label", type=str, default="teacher", help="evaluation/LABEL holds the teacher's scores")
    recipe, flags = parse(p)
    folder = Path(recipe.run_dir)
    for needed in filter(None, [recipe.run_dir, flags.baseline]):
        if not Path(needed).is_dir():
            raise BadInput(f"no run directory {needed}: run distill first")
    from pipeline.reporting.page import render

    with record_status(folder, "report"):
        run = read_run(folder, asdict(recipe))
        baseline = read_run(Path(flags.baseline)) if flags.baseline else None
        found = scores(run, baseline, flags.teacher_label)
        write_json(folder / "summary.json", summary(run, baseline, flags.teacher_label))
        write_text(folder / "report.html", render(run, baseline, found, flags.teacher_label))
    print_scores(found)
    print(f"report: {folder / 'report.html'}")


def print_scores(found: dict[str, dict[str, Record]]) -> None:
    """The closing table."""
    table = Table("task", "model", "score", "95% interval", "n", title="Scores")
    for task, models in found.items():
        for model, score in models.items():
            table.add_row(task, model, f"{score['value']:.3f}", interval(score), str(score["n"]))
    Console().print(table if found else "no scores yet: run evaluate")


if __name__ == "__main__":
    sys.exit(exit_code("report", main))

"""Writes report.html and summary.json of a run, beside the models it is compared with:
`python pipeline/report.py --recipe demo --baseline runs/demo-undistilled`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pipeline.config.cli import parse, parser
from pipeline.core.errors import exit_code


def main() -> None:
    """Parses the command line and writes the report."""
    p = parser(__doc__)
    p.add_argument(
        "--baseline",
        nargs="*",
        metavar="[LABEL=]FOLDER",
        help="models to compare with, in this order: run directories, or folders of scores (RUN/evaluation/LABEL); "
        "default: those of the last report; with no folder behind it: none",
    )
    p.add_argument("--teacher-label", type=str, default="teacher", help="evaluation/LABEL holds the teacher's scores")
    recipe, flags = parse(p)
    from pipeline.reporting.page import write_report

    write_report(recipe, flags.baseline, flags.teacher_label)


command = partial(exit_code, "report", main)  # tide-report

if __name__ == "__main__":
    sys.exit(command())

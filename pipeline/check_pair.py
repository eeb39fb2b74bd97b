"""Whether a student and a teacher can work together, on one screen:
`python pipeline/check_pair.py --student X --teacher Y [--input block] [--data rows.jsonl]`.

Reads configs and tokenizers, aligns a few rows, and asks the teacher how likely it finds them where its weights are in a local
folder. Exit code 2 where the pair cannot work.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from rich.table import Table

from pipeline.core.errors import BadInput, exit_code
from pipeline.core.terminal import Console
from pipeline.core.version import plain_parser


def main() -> None:
    """Parses the command line, looks, and prints."""
    p = plain_parser(__doc__)
    p.add_argument("--student", required=True, help="folder or hub name of the student")
    p.add_argument("--teacher", required=True, help="folder or hub name of the teacher")
    p.add_argument(
        "--input", default="full", choices=("full", "block", "causal"), help="as the recipe's teachers.input"
    )
    p.add_argument("--data", default="", help="chat rows, as the recipe's data.sources")
    p.add_argument("--rows", type=int, default=32, help="rows to look at")
    p.add_argument("--length", type=int, default=1024, help="longest row, in tokens")
    options = p.parse_args()

    from pipeline.alignment.formats import BadRow
    from pipeline.alignment.pair import check_pair, require_rows
    from pipeline.alignment.sources import open_source
    from pipeline.config.recipe import Source

    rows = []
    if options.data:
        source = open_source(Source(options.data, "rows"))
        read = source.read(0, min(options.rows, source.table.count), on_bad_row="drop")
        rows = [row for row in read if not isinstance(row, BadRow)]
        require_rows(rows, options.data)
    report = check_pair(options.student, options.teacher, options.input, rows, options.length)
    table = Table(show_header=False)
    for line in report.lines:
        table.add_row(*line)
    for warning in report.warnings:
        table.add_row("WARNING", warning)
    Console(width=140).print(table)
    if report.problems:
        raise BadInput("this pair cannot work: " + "; ".join(report.problems))


command = partial(exit_code, "check_pair", main)  # tide-check-pair

if __name__ == "__main__":
    sys.exit(command())

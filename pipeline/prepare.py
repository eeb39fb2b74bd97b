"""Fetches and checks the data of a recipe: `python pipeline/prepare.py --recipe llada2_mini`.

Downloads what lies on the hub into its cache, makes the selections that the sources ask for (all configurations, hold-out,
text filter) and reads rows of each; align then finds everything on the disk and needs no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections import Counter
from functools import partial

from rich.table import Table

from pipeline.alignment.formats import BadRow
from pipeline.alignment.sources import ChatRows, open_source
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import OnBadRow, Source, Validation
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.log import log
from pipeline.core.stage_status import record_status
from pipeline.core.terminal import Console


def main() -> None:
    """Parses the command line, opens every source and shows what it holds."""
    p = parser(__doc__)
    p.add_argument("--check-rows", type=int, default=1000, help="rows of each source that are read and checked")
    recipe, flags = parse(p)
    validation = [recipe.data.validation] if recipe.data.validation else []
    named: list[tuple[str, Source | Validation]] = [(source.name, source) for source in recipe.data.sources]
    named += [("validation", v) for v in validation]
    if not named:
        raise BadInput("the recipe names no data: set data.sources")
    table = Table(
        "source", "rows", "format", f"bad among the first {flags.check_rows:,}", title=f"data of {recipe.name}"
    )
    with record_status(Path(recipe.run_dir), "prepare"):
        for name, source in named:
            log.info(f"opening {name}: {source.path}")
            rows = open_source(source)
            bad = bad_rows(rows, flags.check_rows, recipe.data.on_bad_row)
            reasons = ", ".join(f"{n} {reason}" for reason, n in bad.items())
            table.add_row(name, f"{rows.table.count:,}", rows.format, reasons or "none")
    Console().print(table)


def bad_rows(rows: ChatRows, limit: int, on_bad_row: OnBadRow) -> Counter[str]:
    """Why rows among the first cannot be read; with on_bad_row `fail` the first of them is an error."""
    conversations = rows.read(0, min(limit, rows.table.count), on_bad_row=on_bad_row)
    return Counter(conversation.reason for conversation in conversations if isinstance(conversation, BadRow))


command = partial(exit_code, "prepare", main)  # tide-prepare

if __name__ == "__main__":
    sys.exit(command())

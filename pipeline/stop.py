"""Asks a distillation to save and end, as SIGTERM does: `python pipeline/stop.py RUN`.

From any machine that sees the run directory: it makes the file RUN/stop, which the run looks for at every step.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.log import log
from pipeline.core.run_directory import stop_file
from pipeline.reporting.run_status import run_state


def main() -> None:
    """Makes the file. Raises BadInput where nothing runs."""
    recipe, _ = parse(parser(__doc__), needs_recipe=False)
    run_dir = Path(recipe.run_dir)
    if not run_dir.is_dir():
        raise BadInput(f"no run directory {run_dir}: `python pipeline/status.py` lists the runs")
    if (state := run_state(run_dir)) != "running":
        raise BadInput(f"{run_dir} is not running ({state}): there is nothing to stop")
    stop_file(run_dir).touch()
    log.info(
        f"{run_dir} was asked to stop: it takes its step, saves and exits with 75 (`python pipeline/status.py {run_dir}`)"
    )


command = partial(exit_code, "stop", main)  # tide-stop

if __name__ == "__main__":
    sys.exit(command())

"""Where a run stands, on one screen: `python pipeline/status.py [RUN | --recipe X] [--json]`; without either, all below runs/.

Reads files only, at any time and from any machine that sees the run directory: `watch -n 5 python pipeline/status.py RUN`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import time
from functools import partial

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.terminal import Console
from pipeline.reporting.run_record import read_run
from pipeline.reporting.run_status import run_status, runs_table


def main() -> None:
    """Reads the run directory and prints what it says."""
    p = parser(__doc__)
    p.add_argument("--json", action="store_true", help="print it for scripts")
    recipe, flags = parse(p, needs_recipe=False)
    if not sys.argv[1:]:
        runs = sorted(path.parent for path in Path("runs").glob("*/recipe.yaml"))
        return Console().print(runs_table([run_status(read_run(run), time.time()) for run in runs]))
    folder = Path(recipe.run_dir)
    if not folder.is_dir():
        raise BadInput(f"no run directory {folder}: start `deepspeed pipeline/distill.py`, or name another one")
    status = run_status(read_run(folder), time.time())
    if flags.json:
        print(json.dumps(status.to_json(), indent=1))
    else:
        Console().print(status.table())


command = partial(exit_code, "status", main)  # tide-status

if __name__ == "__main__":
    sys.exit(command())

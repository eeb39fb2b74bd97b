"""Computes a causal teacher's answers once: `python pipeline/precompute.py --recipe X`, or `torchrun ... pipeline/precompute.py`.

For teachers with `input: causal` and `answers: stored`, whose answers depend on no noise; `distill` then holds no such teacher.
They lie in the aligned dataset's folder; a stopped run goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datetime import timedelta
from functools import partial

from jsonargparse.typing import PositiveFloat

from pipeline.config.cli import parse, parser
from pipeline.core.errors import exit_code, leave
from pipeline.core.log import log
from pipeline.core.stage_status import record_status
from pipeline.distributed.launcher_env import normalize_launcher_env


def main() -> None:
    """Parses the command line and computes."""
    normalize_launcher_env()
    p = parser(__doc__)
    p.add_argument("--timeout-minutes", type=PositiveFloat, default=30.0, help="longest wait for another rank")
    p.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by launchers; the environment counts")
    recipe, flags = parse(p)
    from pipeline.distributed.topology import start
    from pipeline.training.precompute import precompute

    with record_status(Path(recipe.run_dir), "precompute") as status:
        done = precompute(recipe, start(timedelta(minutes=flags.timeout_minutes)))
        status["message"] = "; ".join(done)
    for line in done:
        log.info(line)


command = partial(exit_code, "precompute", main)  # tide-precompute

if __name__ == "__main__":
    leave(command())

"""Distils teachers into a student: `deepspeed pipeline/distill.py --deepspeed ds_configs/zero3.json [--recipe X]`.

Also `torchrun pipeline/distill.py ...`. Without teachers it trains the student alone (BD3LM).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from jsonargparse.typing import PositiveFloat

from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe, dump
from pipeline.core.errors import BadInput, exit_code, leave
from pipeline.core.log import rank
from pipeline.distributed.default_ranks import launch_default_ranks
from pipeline.distributed.launcher_env import normalize_launcher_env
from pipeline.distributed.signals import StopSignals

LONGEST_TIMEOUT = 365 * 24 * 60


def main() -> None:
    """Parses the command line, and trains or says what it would train."""
    launch_default_ranks()
    normalize_launcher_env()
    stop = StopSignals()
    p = parser(__doc__)
    p.add_argument("--deepspeed", default="ds_configs/zero3.json", help="DeepSpeed engine settings of the student")
    p.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the topology, and stop")
    p.add_argument("--timeout-minutes", type=PositiveFloat, default=30.0, help="longest time without progress")
    p.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by launchers; the environment counts")
    recipe, flags = parse(p)
    if flags.timeout_minutes > LONGEST_TIMEOUT:
        raise BadInput(f"--timeout-minutes {flags.timeout_minutes:g} is longer than a year ({LONGEST_TIMEOUT})")
    if flags.dry_run:
        dry_run(recipe, Path(flags.deepspeed))
        return
    from pipeline.training.run import distill  # imports torch: the command line is refused before that

    distill(recipe, Path(flags.deepspeed), stop, flags.timeout_minutes)


def dry_run(recipe: Recipe, engine_config: Path) -> None:
    """Checks all that needs no model, and prints the resolved recipe and what it runs on."""
    from pipeline.training.preflight import prepare

    plan = prepare(recipe, engine_config)
    if rank() == 0:
        print(dump(recipe), end="")
        print(*(f"# {line}" for line in plan.summary()), *(f"# WARNING {line}" for line in plan.warnings), sep="\n")


command = partial(exit_code, "distill", main)  # tide-distill

if __name__ == "__main__":
    leave(command())

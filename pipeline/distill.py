"""Distils teachers into a student: `deepspeed pipeline/distill.py --deepspeed ds_configs/zero3.json [--recipe X]`.

Also `torchrun pipeline/distill.py ...`. Without teachers it trains the student alone (BD3LM).
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: the repository root, not pipeline/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jsonargparse.typing import PositiveFloat

from pipeline.config.checks import advice
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.errors import exit_code
from pipeline.core.log import rank
from pipeline.core.run_directory import record_status, saved_step
from pipeline.distributed.launcher_env import adopt
from pipeline.distributed.signals import StopSignals
from pipeline.training.run_lock import claim, finished

if TYPE_CHECKING:
    from pipeline.training.preflight import Plan


def main() -> None:
    """Parses the command line, takes the run directory, checks what can be checked without a model, and trains."""
    adopt()
    stop = StopSignals()
    p = parser(__doc__)
    p.add_argument("--deepspeed", default="ds_configs/zero3.json", help="DeepSpeed engine settings of the student")
    p.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the topology, and stop")
    p.add_argument("--timeout-minutes", type=PositiveFloat, default=30.0, help="longest time without progress")
    p.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by launchers; the environment counts")
    recipe, flags = parse(p)

    if flags.dry_run:
        plan_run(recipe, flags.deepspeed)
        return
    distill(recipe, flags.deepspeed, stop, flags.timeout_minutes)


def distill(recipe: Recipe, engine_config: str, stop: StopSignals, timeout_minutes: float) -> None:
    """Trains from the newest checkpoint to the last step, unless that is done. Raises StoppedEarly after a signal."""
    run_dir = Path(recipe.run_dir)
    with claim(recipe) or nullcontext():
        if finished(recipe):
            if rank() == 0:
                print(f"{run_dir} is done: delete it or choose another --run_dir to train again")
            return
        with record_status(run_dir, "distill") as status:
            try:
                plan = plan_run(recipe, engine_config)
                from pipeline.training.run import train

                train(plan, stop, timeout_minutes)
            finally:
                status["step"] = saved_step(run_dir)


def plan_run(recipe: Recipe, engine_config: str) -> Plan:
    """Checks and prints what the run will be."""
    from pipeline.training.preflight import announce, prepare

    plan = prepare(recipe, Path(engine_config))
    announce(plan, advice(recipe))
    return plan


if __name__ == "__main__":
    sys.exit(exit_code("distill", main))

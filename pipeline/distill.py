"""Distils teachers into a student: `deepspeed pipeline/distill.py --deepspeed ds_configs/zero3.json [--recipe X]`.

Also `torchrun pipeline/distill.py ...`. Without teachers it trains the student alone (BD3LM).
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

if not __package__:  # run as a script: the repository root, not pipeline/, belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jsonargparse.typing import PositiveFloat

from pipeline.recipe import advice, parse, parser
from pipeline.run_directory import exit_code, rank, record_status


def main() -> None:
    """Parses the command line, checks what can be checked without a model, and trains."""
    p = parser(__doc__)
    p.add_argument("--deepspeed", default="ds_configs/zero3.json", help="DeepSpeed engine settings of the student")
    p.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the topology, and stop")
    p.add_argument("--timeout-minutes", type=PositiveFloat, default=30.0, help="longest wait for another rank")
    p.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by launchers; the environment counts")
    recipe, flags = parse(p)

    from pipeline.training.plan import announce, claim, finished, prepare  # torch: seconds, so after the command line

    plan = prepare(recipe, Path(flags.deepspeed))
    announce(plan, advice(recipe))
    if flags.dry_run:
        return
    with claim(recipe) or nullcontext():
        if finished(recipe):
            if rank() == 0:
                print(f"{recipe.run_dir} is done: delete it or choose another --run_dir to train again")
            return
        from pipeline.training.run import train  # DeepSpeed: more seconds

        with record_status(Path(recipe.run_dir), "distill") as status:
            status["step"] = train(plan, flags.timeout_minutes)


if __name__ == "__main__":
    sys.exit(exit_code("distill", main))

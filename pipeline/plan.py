"""What a run needs, before any GPU is held: `python pipeline/plan.py --recipe X --nodes N --gpus-per-node M --gpu-memory G`.

Reads the models' configs and, where there is one, the aligned dataset. Several numbers of nodes (`--nodes 1 2 8`) give a
table to compare them. Exit code 2 where the run does not fit. How it counts: docs/plan.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import os
from functools import partial
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt, restricted_number_type

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.log import log
from pipeline.core.terminal import Console

Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)], docstring="above 0 and at most 1")


def main() -> None:
    """Parses the command line and plans."""
    p = parser(__doc__)
    p.add_argument("--nodes", type=PositiveInt, nargs="+", default=[1], help="nodes of the job, or several numbers")
    p.add_argument("--gpus-per-node", type=PositiveInt, default=8, help="GPUs of a node")
    p.add_argument("--gpu-memory", type=PositiveFloat, default=80.0, help="GB (10^9 bytes) of each GPU")
    p.add_argument("--device", type=Literal["cuda", "cpu"], default="cuda", help="where the run is to be")
    p.add_argument("--headroom", type=ClosedUnitInterval, default=0.1, help="share kept for CUDA, NCCL, fragmentation")
    p.add_argument(
        "--gpu-tflops", type=PositiveFloat, default=989.0, help="peak of a GPU in TFLOP/s (H100: 989 in bf16)"
    )
    p.add_argument("--mfu", type=Share, default=0.3, help="share of the peak that the run reaches")
    p.add_argument("--launch-us", type=PositiveFloat, default=10.0, help="host time per operation, in microseconds")
    p.add_argument("--network", type=PositiveFloat, default=50.0, help="GB/s that a GPU sends to other nodes")
    p.add_argument(
        "--expert-imbalance", type=PositiveFloat, default=1.0, help="busiest expert-parallel rank's tokens / the mean"
    )
    p.add_argument("--rows", type=PositiveInt, default=None, help="training rows, where nothing is aligned yet")
    p.add_argument("--mean-tokens", type=PositiveInt, default=None, help="tokens of an average row, likewise")
    p.add_argument("--config", action="append", default=[], help="NAME=FILE: config.json of `student` or of a teacher")
    p.add_argument("--deepspeed", default="ds_configs/zero3_bf16.json", help="DeepSpeed engine settings of the student")
    p.add_argument("--json", action="store_true", help="print JSON, for scripts")
    recipe, flags = parse(p)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing here needs a GPU, nor the tools to find one

    from pipeline.capacity.capacity_report import GB
    from pipeline.capacity.report_tables import details, refusal, summary
    from pipeline.capacity.stage import plan_runs

    reports, stores = plan_runs(recipe, flags)
    if flags.json:
        stored = {"stored_answers_gb": {name: size / GB for name, size in stores.items()}} if stores else {}
        print(json.dumps([report.to_json() | stored for report in reports], indent=1))
    else:
        # wide enough for any table: a pipe or a file would get 80 columns
        Console(width=160).print(summary(reports) if len(reports) > 1 else details(reports[0]))
        for name, size in stores.items():
            log.info(
                f"teacher {name}: stored answers take {size / GB:.2f} GB; `--teachers.answers` live or stored plans the other way"
            )
        for warning in filter(None, (report.warning for report in reports)):
            log.warning(warning)
    if refused := [refusal(report) for report in reports if not report.fits]:
        raise BadInput("; ".join(refused))


command = partial(exit_code, "plan", main)  # tide-plan

if __name__ == "__main__":
    sys.exit(command())

"""Builds the aligned dataset of a recipe: `python pipeline/align.py [--recipe X]`, or `mpirun -n 64 python ...`.

Reads the chat data, renders and tokenizes each row once for the student and once for every teacher, and ties their
tokens by chunks. Works on the CPU; finished shards are kept, so a stopped run goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import signal
from functools import partial

from pipeline.alignment.manifest_summary import table
from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.stage_status import record_status
from pipeline.core.terminal import Console
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.distributed.signals import stop_early_on


def main() -> None:
    """Parses the command line and aligns."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes are the parallelism
    ranks = Ranks()
    os.environ["RANK"] = str(ranks.rank)  # for messages and the status file, which rank 0 writes
    p = parser(__doc__)
    p.add_argument("--processes", type=int, default=0, help="worker processes; 0 = all cores, under mpirun 1 per rank")
    p.add_argument("--shard-rows", type=int, default=4096, help="rows of a source in one shard")
    p.add_argument("--overwrite", action="store_true", help="replace a finished dataset of other settings or data")
    recipe, flags = parse(p)
    if flags.shard_rows < 1 or flags.processes < 0:
        raise BadInput("--shard-rows must be at least 1 and --processes at least 0")
    from pipeline.alignment.build import align  # imports transformers: the command line is refused before that

    processes = flags.processes or (os.cpu_count() or 1 if ranks.size == 1 else 1)
    manifest_file = Path(recipe.data.aligned) / "manifest.json"
    with record_status(Path(recipe.run_dir), "align", keeps=manifest_file.is_file) as status:
        stopped = "stopped by a signal; finished shards stay, the same command goes on"
        stop_early_on(signal.SIGTERM, signal.SIGINT, message=stopped)
        manifest, built = align(recipe, ranks, processes, flags.shard_rows, overwrite=flags.overwrite)
        status["message"] = built
    if ranks.rank == 0:
        console = Console()
        console.print(table(manifest))
        console.print(f"{recipe.data.aligned}: {built}", soft_wrap=True)


command = partial(exit_code, "align", main)  # tide-align

if __name__ == "__main__":
    sys.exit(command())

"""The project's one logger: a time on every line, levels, and one voice among the ranks.

`log.info` and `log.warning` of rank 0 go to standard output, beside a stage's results; other ranks are heard from `log.error`
on, or with `--verbose`, and say which they are. Libraries keep their own loggers, which speak from WARNING on.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO

from pipeline.core.terminal import visible

MPI_WORLD_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Set by Open MPI, and by MPICH, Intel MPI and Slurm's PMI."""


def rank() -> int:
    """Rank of this process as its launcher says, 0 without one. A RANK alone is left over from something else."""
    return int(os.environ.get("RANK") or 0) if launched() else 0


def launched() -> bool:
    """Whether a launcher has started this process: it says how many it started."""
    return any(os.environ.get(name) for name in ("WORLD_SIZE", *MPI_WORLD_SIZES))


class _Handler(logging.StreamHandler[Any]):
    """Writes to what `sys.stdout` is at that moment, as `print` does: stages redirect it, and so does pytest."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        speaker = f"[rank {rank()}] " if rank() else ""
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{speaker}{visible(super().format(record))}"


def _audible(record: logging.LogRecord) -> bool:
    return rank() == 0 or record.levelno >= logging.ERROR or log.isEnabledFor(logging.DEBUG)


log = logging.getLogger("pipeline")
log.setLevel(logging.INFO)
log.propagate = False
if not log.handlers:
    _handler = _Handler()
    _handler.setFormatter(_Formatter())
    _handler.addFilter(_audible)
    log.addHandler(_handler)

# DeepSpeed warns of every run without a GPU; one that should have a GPU is refused by distributed.topology
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """`quiet` leaves warnings and errors; `verbose` adds details and the lines of every rank."""
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)

"""Ranks under mpirun: work that one or all of them do, where the failure of any is the failure of all.

Without MPI there is one rank. mpi4py is imported only under a launcher, since importing it starts MPI.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.core.errors import BadInput

T = TypeVar("T")

WORLD_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Set by Open MPI, and by MPICH, Intel MPI and Slurm's PMI."""


class Ranks:
    """This process's `rank` among `size` ranks. Every rank makes the same calls of `share` and `gather`, in order."""

    def __init__(self) -> None:
        self._comm: Any = None
        self.rank, self.size = 0, 1
        if any(int(os.environ.get(name, 1)) > 1 for name in WORLD_SIZES):
            try:
                from mpi4py import MPI
            except (ImportError, RuntimeError) as error:
                raise BadInput(f"started by an MPI launcher, but MPI does not load ({error})") from None
            self._comm = MPI.COMM_WORLD
            self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()

    def share(self, work: Callable[[], T]) -> T:
        """Rank 0 works; all ranks get its result, or its error."""
        outcome: Any = _outcome(work, self.rank) if self.rank == 0 else None
        return _result(self._comm.bcast(outcome) if self._comm else outcome)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Every rank works; all ranks get all results in order, or the first rank's error."""
        outcome = _outcome(work, self.rank)
        return [_result(o) for o in (self._comm.allgather(outcome) if self._comm else [outcome])]


def _outcome(work: Callable[[], T], rank: int) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except BadInput as error:
        return None, error
    except Exception as error:
        # Other ranks see a message, since not every exception can be sent.
        return None, error if rank == 0 else RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")


def _result(outcome: tuple[T, Exception | None]) -> T:
    value, error = outcome
    if error is not None:
        raise error
    return value

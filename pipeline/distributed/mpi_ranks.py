"""Ranks under mpirun: work that one or all of them do, where the failure of any is the failure of all.

Without MPI there is one rank. mpi4py is imported only under a launcher, since importing it starts MPI.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.core.errors import BadInput, for_user
from pipeline.core.log import MPI_WORLD_SIZES
from pipeline.distributed.collectives import all_or_error, first_or_error

T = TypeVar("T")


class Ranks:
    """This process's `rank` among `size` ranks. Every rank makes the same calls of `share` and `gather`, in order."""

    def __init__(self) -> None:
        self._comm: Any = None
        self.rank, self.size = 0, 1
        if any(int(os.environ.get(name, 1)) > 1 for name in MPI_WORLD_SIZES):
            try:
                from mpi4py import MPI
            except (ImportError, RuntimeError) as error:
                raise BadInput(f"started by an MPI launcher, but MPI does not load ({error})") from None
            self._comm = MPI.COMM_WORLD
            self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()

    def share(self, work: Callable[[], T]) -> T:
        """Rank 0 works; all ranks get its result, or its error."""
        return first_or_error(for_user(work), self.rank == 0, self._comm.bcast) if self._comm else work()

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Every rank works; all ranks get all results in order, or an error."""
        return all_or_error(for_user(work), self._comm.allgather) if self._comm else [work()]

"""Work whose failure on one rank is everybody's, over whatever connects the ranks (torch.distributed, MPI)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.core.errors import BadInput
from pipeline.core.log import rank

T = TypeVar("T")


class RanksFailed(Exception):
    """Some ranks could not do their part: which, where and why."""


def all_or_error(
    work: Callable[[], T], gather: Callable[[Any], list[Any]], caught: tuple[type[Exception], ...] = (Exception,)
) -> list[T]:
    """Every rank works; all get all results in the order of ranks, or all raise the same error. Collective.

    Args:
        gather: every rank's object to every rank.
        caught: errors of `work` that count as its failure; others are this rank's own.

    Raises BadInput where that was a rank's error, else RanksFailed.
    """
    result, error = _attempt(work, caught)
    outcomes = gather((result, _portable(error)))
    errors = [failure for _, failure in outcomes if failure is not None]
    for failure in errors:
        if isinstance(failure, BadInput):
            raise failure from error
    if errors:
        raise RanksFailed("; ".join(errors)) from error
    return [value for value, _ in outcomes]


def first_or_error(work: Callable[[], T], first: bool, broadcast: Callable[[Any], Any]) -> T:
    """The first rank works; all get its result, or all raise its error, as `all_or_error` does. Collective.

    Args:
        first: whether this is the first rank.
        broadcast: the first rank's object to every rank.
    """
    result, error = _attempt(work, (Exception,)) if first else (None, None)
    result, failure = broadcast((result, _portable(error)))
    if failure is not None:
        raise (failure if isinstance(failure, BadInput) else RanksFailed(failure)) from error
    return result


def _attempt(work: Callable[[], T], caught: tuple[type[Exception], ...]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except caught as error:
        return None, error


def _portable(error: Exception | None) -> BadInput | str | None:
    """Not every exception can be sent: of others than BadInput goes what they say, and where."""
    if error is None or isinstance(error, BadInput):
        return error
    return f"rank {rank()} on {socket.gethostname()}: {type(error).__name__}: {error}"

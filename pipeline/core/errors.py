"""How a stage ends: exit codes, and what a user can put right."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

from pipeline.core.log import launched, rank
from pipeline.core.terminal import draw_bars_on_terminals_only, outlive_readers, print_any_letter, visible

T = TypeVar("T")


class BadInput(Exception):
    """Something that the user can put right: one line that names the thing and the remedy; exit code 2."""


_PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def of_user(error: BaseException) -> BadInput | None:
    """The error as one that the user can put right: a BadInput itself, or a place that is full, read-only or another's."""
    if isinstance(error, OSError) and error.errno in _PLACES:
        where = f"{error.filename}: " if error.filename else ""
        words = f"{where}{os.strerror(error.errno)}: make room, or choose another folder (--run_dir, --data.aligned, TMPDIR)"
        return BadInput(f"{words}; what was finished stays, and the same command goes on")
    return error if isinstance(error, BadInput) else None


def for_user(work: Callable[[], T]) -> Callable[[], T]:
    """`work`, with OSErrors that the user can put right (a full disk) raised as BadInput, which every rank can get."""

    def attempt() -> T:
        try:
            return work()
        except OSError as error:
            if bad_input := of_user(error):
                raise bad_input from None
            raise

    return attempt


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 500 characters; its kind where it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 500 else f"{words[:497]}..."


DONE, BAD_INPUT, STOPPED_EARLY = 0, 2, 75


class StoppedEarly(BaseException):
    """The stage was asked to stop, has saved what it had and can go on later; exit code 75.

    Like KeyboardInterrupt it may come out of a signal handler, and no `except Exception` swallows it.
    """


def exit_code(stage: str, main: Callable[[], None]) -> int:
    """Runs a stage and turns its outcome into the exit code: 0, 2 (bad input, one line per node) or 75 (stopped early)."""
    outlive_readers()
    print_any_letter()
    draw_bars_on_terminals_only()
    try:
        main()
    except (BadInput, OSError) as caught:
        if (error := of_user(caught)) is None:
            raise
        if (
            int(os.environ.get("LOCAL_RANK") or rank()) if launched() else 0
        ) == 0:  # a node may lack what the others have
            print(visible(f"{stage}: {error}"), file=sys.stderr, flush=True)
        # A launcher ends all ranks after the first: rank 0, which may be slower, writes the status file. align's ranks
        # under mpirun have no WORLD_SIZE, and fail together.
        if rank() != 0 and os.environ.get("WORLD_SIZE"):
            with suppress(StoppedEarly):
                time.sleep(60)
        return BAD_INPUT
    except StoppedEarly as stop:
        if rank() == 0:
            print(visible(f"{stage}: {stop} (exit code {STOPPED_EARLY})"), flush=True)
        return STOPPED_EARLY
    return DONE


def leave(code: int) -> NoReturn:
    """Ends a process that may have had process groups, as `sys.exit` does but for the interpreter's own end.

    Threads are joined and `atexit` is heard. After that gloo's threads may still release tensors of the last collective:
    one that then waits for Python's lock aborts the process, whose work is done (pytorch's pull request 179291).
    """
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

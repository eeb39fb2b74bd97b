"""Stopping: SIGTERM, SIGINT, SIGUSR1 (the scheduler's warning), SIGHUP and the death of the launcher or of a parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.core.errors import StoppedEarly
from pipeline.core.log import log, rank
from pipeline.distributed.patient_launcher import halt_launcher

_PR_SET_PDEATHSIG = 1


def stop_early_on(*numbers: int, message: str) -> None:
    """From here on, each of these signals raises StoppedEarly with this message wherever the process is."""

    def stop(*_signal: object) -> None:
        raise StoppedEarly(message)

    for number in numbers:
        signal.signal(number, stop)


def end_with_parent() -> None:
    """From here on, the kernel kills this process when the one that started it ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class StopSignals:
    """Made at the start of the process, before anything that takes time.

    While nothing is unsaved, a signal raises StoppedEarly wherever the process is. After `defer` it is noted in `seen`, for
    the loop to read at a step's boundary. A rank whose launcher has died is told as by SIGTERM: no launcher, no orphan.
    """

    def __init__(self) -> None:
        self.seen = self._deferred = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._note)
        # under nohup a hang-up is no reason to stop, but torchrun takes it as one and passes it on
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN or "TORCHELASTIC_RUN_ID" in os.environ:
            signal.signal(signal.SIGHUP, self._note)
        if "WORLD_SIZE" in os.environ:  # a process started by hand may outlive its shell
            if launcher_is_gone():
                raise StoppedEarly("the launcher ended while this rank was starting")
            threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()

    def defer(self) -> None:
        """From here on there are steps to save first."""
        self._deferred = True

    def settle(self) -> None:
        """All is saved: a signal that came meanwhile, or comes from here on, raises StoppedEarly again."""
        self._deferred = False
        if self.seen:
            raise StoppedEarly("stopped by a signal: run the same command to go on")

    def _note(self, number: int, frame: object) -> None:
        first, self.seen = not self.seen, True
        if not first:  # a second signal must not disturb what the first one has begun
            return
        if not self._deferred:
            raise StoppedEarly("stopped by a signal before training began: run the same command to go on")
        if rank() == 0:  # not by the logger, in whose midst the signal may have come
            os.write(2, b"stopping: the step that runs is taken and saved first\n")
        halt_launcher()


def launcher_is_gone() -> bool:
    """Whether this rank's parent is no launcher but the adopter of orphans: process 1, or systemd for user processes.

    In a container process 1 may be the launcher: then it is a Python with this script on its command line.
    """
    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        words = parent.cmdline()
        launches = "python" in "".join(words[:1]) and any(Path(word).name == Path(sys.argv[0]).name for word in words)
        return (parent.pid == 1 or parent.name() == "systemd") and not launches
    return False


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    log.error(f"the launcher (process {parent}) is gone: stopping")
    os.kill(os.getpid(), signal.SIGTERM)

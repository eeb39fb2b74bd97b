"""Time to save: DeepSpeed's launcher kills its ranks 30 s after it was told to stop, and has no setting for that."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import psutil

# Run as an orphan, since the launcher ends all descendants of its ranks. It outlives the rank, however the rank ends.
_HALT = """
import os, select, signal, sys
rank, *launchers = map(int, sys.argv[1:])
ended = os.pidfd_open(rank)
for number in (signal.SIGSTOP, signal.SIGCONT):
    for launcher in launchers:
        try:
            os.kill(launcher, number)
        except ProcessLookupError:
            pass
    if number == signal.SIGSTOP:
        select.select([ended], [], [])
"""


def halt_launcher() -> None:
    """Halts the DeepSpeed launchers above this process until it has ended, if it is the first rank of its node."""
    if int(os.environ.get("LOCAL_RANK") or 0):
        return
    launchers: list[str] = []
    with suppress(psutil.Error):  # processes of other users may be hidden
        parents = psutil.Process().parents()
        launchers = [str(process.pid) for process in parents if "deepspeed.launcher.launch" in process.cmdline()]
    if launchers:
        shell = ["sh", "-c", 'trap "" INT TERM HUP; "$@" &', "sh"]
        subprocess.run([*shell, sys.executable, "-c", _HALT, str(os.getpid()), *launchers], start_new_session=True)

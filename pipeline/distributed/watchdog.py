"""Ends a run that cannot go on, and says why: a rank that died, failed, hangs or is cut off, by name.

Every rank has a thread that sends rank 0 a note every few seconds: in which line of code it is. Rank 0's thread judges. A
dead process closes its connection, so its death is known at once; a silent one has SILENCE seconds.
"""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any, cast

from pipeline.core.errors import BAD_INPUT, BadInput, StoppedEarly
from pipeline.distributed import device_reads
from pipeline.distributed.topology import Topology

BEAT, SILENCE = 5.0, 120.0
"""Seconds between two notes of a rank, and seconds without a note after which the rank counts as cut off."""
_OURS = str(Path(__file__).parents[1])

_WAITS = ("/torch/distributed/", "/torch/cuda/", "/deepspeed/", device_reads.__file__)


def is_waiting(file: str) -> bool:
    """Whether a thread whose innermost frame is in this file probably waits for another rank.

    Under gloo it waits in the collective. Under NCCL collectives only enqueue: it waits where it reads from the device, be it
    in DeepSpeed, in torch.cuda or in our own `device_reads`.
    """
    return any(part in file for part in _WAITS)


@dataclass
class Note:
    """What a rank says of itself."""

    rank: int
    host: str
    line: str
    """where its main thread is"""
    waiting: bool
    """see `is_waiting`"""
    failure: str = ""
    exit_code: int = 1
    ended: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


class Watchdog:
    """Watches over a `with` block. `fail(message, exit_code)` records a verdict, on whichever rank is left to do so.

    No progress (no call of `heartbeat`) for `limit` seconds ends the run: ranks go in step, so that any of them stops rank 0.
    Making one is collective.
    """

    def __init__(self, topology: Topology, limit: float, fail: Callable[[str, int], None]):
        self.topology, self.limit, self.fail = topology, limit, fail
        self.beat = min(BEAT, limit / 4)
        self._main = threading.get_ident()
        self._peers: dict[Connection, tuple[Note, float]] = {}
        self._ended, self._reading = threading.Event(), threading.Lock()
        self.heartbeat("starting")
        self._connect()

    def heartbeat(self, phase: str) -> None:
        """The run goes on, with this next: "loading the models"."""
        self.phase, self._since = phase, time.monotonic()

    def __enter__(self) -> Watchdog:
        first = self.topology.rank == 0
        threading.Thread(target=self._judge if first else self._report, daemon=True).start()
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _: object) -> None:
        """Tells the others of a failure or an orderly end."""
        failed = error is not None and not isinstance(error, StoppedEarly)
        if failed and self.topology.rank == 0:
            # If another rank is the cause, the thread ends this process within that time: a round and 1 s.
            if self.topology.world_size > 1:
                time.sleep(3)
            return
        outcome: dict[str, Any] = {"ended": True}
        if failed:
            outcome = {"failure": f"failed while {self.phase}: {type(error).__name__}: {error}"}
            outcome["exit_code"] = BAD_INPUT if isinstance(error, BadInput) else 1
        self._ended.set()
        for connection in list(self._peers):
            self._send(connection, self._note(**outcome))
            if failed and self._gone(connection, 0.5):  # before rank 0 can have ended the run for this rank's sake
                traceback.print_exception(error)
                self._end_without_rank_0()
            elif failed and (silent := self._unheard(3 * self.beat)):  # a collective gave up first
                traceback.print_exception(error)
                self._end_silent(silent[0])

    def _connect(self) -> None:
        """Every rank to rank 0, which alone listens."""
        meeting: Any = None  # host, port and key
        if self.topology.rank == 0:
            key = secrets.token_bytes(16)
            listener = Listener(("", 0), backlog=self.topology.world_size, authkey=key)
            meeting = os.environ["MASTER_ADDR"], listener.address[1], key
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        meeting = self.topology.broadcast_object(meeting)
        if self.topology.rank != 0:
            host, port, key = meeting
            connection = Client((host, port), authkey=key)
            with socket.socket(fileno=os.dup(connection.fileno())) as its:  # a lost node says no farewell
                its.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SILENCE))
            self._peers[connection] = Note(0, host, "", False), time.monotonic()
            self._send(connection, self._note())

    def _accept(self, listener: Listener) -> None:
        while len(self._peers) < self.topology.world_size - 1:
            try:
                connection = listener.accept()
                self._peers[connection] = Note(**json.loads(connection.recv_bytes())), time.monotonic()
            except (OSError, EOFError, AuthenticationError):  # somebody scans ports
                continue
        listener.close()

    def _note(self, **outcome: Any) -> Note:
        stack = [(f.f_code, line) for f, line in traceback.walk_stack(sys._current_frames()[self._main])]
        callers = [
            (c, n) for c, n in stack if c.co_filename.startswith(_OURS) and c.co_filename != device_reads.__file__
        ]
        code, line = (callers or stack)[0]
        where = f"{os.path.relpath(code.co_filename, Path(_OURS).parent)}:{line} {code.co_name}"
        return Note(self.topology.rank, socket.gethostname(), where, is_waiting(stack[0][0].co_filename), **outcome)

    def _send(self, connection: Connection, note: Note) -> None:
        with suppress(OSError):  # the other side is gone: a thread of it or of ours speaks of that
            connection.send_bytes(json.dumps(asdict(note)).encode())

    def _next(self, connection: Connection, seconds: float) -> Note | None:
        """Rank 0's next note, if it comes within that time. Two threads may ask; one of them gets it."""
        if connection.poll(seconds):
            with self._reading:
                return Note(**json.loads(connection.recv_bytes())) if connection.poll(0) else None
        return None

    def _gone(self, connection: Connection, seconds: float) -> bool:
        """Whether rank 0 closes the connection within that time."""
        until = time.monotonic() + seconds
        try:
            while (left := until - time.monotonic()) > 0:
                self._next(connection, left)
        except (EOFError, OSError):
            return True
        return False

    def _report(self) -> None:
        """A rank other than 0: sends notes until it or rank 0 ends, and hears whether rank 0 still goes on."""
        (connection,) = self._peers
        while not self._ended.is_set():
            self._send(connection, self._note())
            try:
                if note := self._next(connection, self.beat):
                    if note.ended:
                        return
                    self._peers[connection] = note, time.monotonic()
            except (EOFError, OSError):
                if not self._ended.is_set():
                    self._end_without_rank_0()
            # rank 0 says that a phase takes too long; where it is not to be heard, it is the cause
            late = time.monotonic() - self._since > self.limit
            if silent := self._unheard(3 * self.beat if late else SILENCE):
                self._end_silent(silent[0])

    def _judge(self) -> None:
        """Rank 0: reads notes, and ends the run when one is missing or bad."""
        spoke = 0.0
        while not self._ended.is_set():
            if time.monotonic() - spoke > self.beat:
                spoke = time.monotonic()
                for connection in list(self._peers):
                    self._send(connection, self._note())
            lost = self._read(min(1.0, self.beat))  # ranks that connect meanwhile are heard in the next round
            if lost and not self._ended.is_set():
                time.sleep(1)  # a death makes others fail: hear all, then name the first cause
                lost += self._read(0)
                first = next((note for note in lost if not note.failure), lost[0])
                cause = first.failure or f"died while {self.phase} (killed, out of memory or crashed): see its log"
                self._end(f"{first} {cause}", first.exit_code)
            if silent := self._unheard(SILENCE):
                self._end_silent(silent[0])
            if time.monotonic() - self._since > self.limit:
                notes = [self._note(), *(note for note, _ in self._peers.values())]
                suspects = self._unheard(3 * self.beat) or [note for note in notes if not note.waiting]
                named = "; ".join(f"{note} in {note.line}" for note in suspects) or "every rank waits for another"
                self._end(f"no progress while {self.phase} for {self.limit:.0f} s: {named}", 1)

    def _unheard(self, seconds: float) -> list[Note]:
        return [note for note, heard in self._peers.values() if time.monotonic() - heard > seconds]

    def _read(self, timeout: float) -> list[Note]:
        """Takes in what has come; returns the ranks that are lost: that failed with a word, or died without one."""
        lost = []
        for ready in wait(list(self._peers), timeout):
            connection = cast("Connection[Any, Any]", ready)
            try:
                note = Note(**json.loads(connection.recv_bytes()))
            except (EOFError, OSError):
                lost.append(self._peers.pop(connection)[0])
                continue
            if note.ended or note.failure:
                self._peers.pop(connection)
                lost += [note] if note.failure else []
            else:
                self._peers[connection] = note, time.monotonic()
        return lost

    def _end_silent(self, note: Note) -> None:
        heard = max(at for peer, at in self._peers.values() if peer.rank == note.rank)
        silence = f"not heard of for {time.monotonic() - heard:.0f} s"
        self._end(f"{note} frozen or cut off while {self.phase}: {silence}", 1)

    def _end_without_rank_0(self) -> None:
        self._end(f"rank 0 died or ended the run while {self.phase}: see its log", 1)

    def _end(self, message: str, code: int) -> None:
        """Says why, with every thread's stack, and ends this process; its main thread may be stuck for ever."""
        print(f"distill: {message}", file=sys.stderr, flush=True)  # as errors.exit_code says it
        with suppress(OSError):
            self.fail(message, code)
        faulthandler.dump_traceback()
        os._exit(code)

"""Two hosts on one machine: network namespaces, and a wire between them that can be cut, slow and lossy.

The wire is a thread for each direction that moves packets from one host's TUN device to the other's, later or never: that needs no
module of the kernel (netem is often missing). A cut one is silent, as a dead switch is.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from select import select

from pipeline.distributed.launcher_env import free_port
from tests import launch

HOSTS = ("node-1", "node-2")
DEVICE, ADDRESSES = "wire0", ("10.77.0.1", "10.77.0.2")
RANKS_A_HOST = 2
_ON_HOST = "tests/distributed/on_host.py"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Network:
    """Both hosts and their wire, while a `with` block lasts. Raises OSError or CalledProcessError where the machine lets none be made."""

    def __init__(self) -> None:
        self.cut = False
        self.delay = 0.0
        """in seconds, one way"""
        self.loss = 0.0
        """share of the packets that never arrive"""
        self.first_address = ADDRESSES[0]
        self.port = free_port()
        self._namespaces = [f"tide-{os.getpid()}-{host}" for host in HOSTS]
        self._ends: list[int] = []
        self._closed = threading.Event()

    def __enter__(self) -> Network:
        try:
            for namespace, address in zip(self._namespaces, ADDRESSES, strict=True):
                end = os.open("/dev/net/tun", os.O_RDWR)
                self._ends.append(end)
                name = f"tide{os.getpid() % 10**6}-{len(self._ends)}"
                fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
                _ip("netns", "add", namespace)
                _ip("link", "set", name, "netns", namespace, "name", DEVICE)
                _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", DEVICE)
                _ip("-n", namespace, "link", "set", DEVICE, "up")
                _ip("-n", namespace, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        self._threads = [threading.Thread(target=self._carry, args=ends) for ends in (self._ends, self._ends[::-1])]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._remove()

    def _remove(self) -> None:
        for end in self._ends:
            os.close(end)
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def _carry(self, source: int, target: int) -> None:
        chance, under_way = random.Random(0), deque[tuple[float, bytes]]()
        while not self._closed.is_set():
            until_next = under_way[0][0] - time.monotonic() if under_way else 0.1
            if select([source], [], [], max(0.0, until_next))[0]:
                packet = os.read(source, 1 << 16)
                if not self.cut and chance.random() >= self.loss:
                    under_way.append((time.monotonic() + self.delay, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                os.write(target, under_way.popleft()[1])

    def move_first_host(self, address: str) -> None:
        """Gives the first host another address, as a job that is queued again may get another node."""
        _ip("-n", self._namespaces[0], "addr", "flush", "dev", DEVICE)
        _ip("-n", self._namespaces[0], "addr", "add", f"{address}/24", "dev", DEVICE)
        self.first_address = address

    def start(self, run_dir: Path, *words: object) -> list[launch.Rank]:
        """Ranks of distill, two a host, without a launcher; what rank N prints is added to RUN_DIR.rank-N.log."""
        found = []
        for rank in range(RANKS_A_HOST * len(HOSTS)):
            host, local = divmod(rank, RANKS_A_HOST)
            place = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": RANKS_A_HOST * len(HOSTS)}
            place |= {"LOCAL_WORLD_SIZE": RANKS_A_HOST, "MASTER_ADDR": self.first_address, "MASTER_PORT": self.port}
            command = [*self._on(host), "pipeline/distill.py", "--run_dir", run_dir, *words]
            output = run_dir.with_name(f"{run_dir.name}.rank-{rank}.log")
            found.append(launch.Rank(command, output, output, place | {"GLOO_SOCKET_IFNAME": DEVICE}))
        return found

    def _on(self, host: int) -> Sequence[object]:
        return [_ON_HOST, self._namespaces[host], HOSTS[host]]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, check=True)

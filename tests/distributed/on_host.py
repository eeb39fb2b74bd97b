"""on_host.py NAMESPACE HOST SCRIPT ...: runs a Python script in a network namespace, under a host name of its own."""

from __future__ import annotations

import ctypes
import os
import runpy
import socket
import sys
from pathlib import Path

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000

namespace, host, *words = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
file = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
if libc.setns(file, CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS):
    raise OSError(ctypes.get_errno(), "no namespace")
os.close(file)
socket.sethostname(host)
sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
runpy.run_path(words[0], run_name="__main__")

"""A private ssh server on loopback, for tests of launchers that start ranks on other hosts: its own keys, files and port."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.distributed.launcher_env import free_port

HOSTS = {"node-1": "127.0.0.2", "node-2": "127.0.0.3"}
"""What the test's ssh knows; all are this machine."""

SERVER = """
Port {port}
ListenAddress 127.0.0.2
ListenAddress 127.0.0.3
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
SetEnv PATH={path}
"""

CLIENT = """
Host node-1
  HostName 127.0.0.2
Host node-2
  HostName 127.0.0.3
Host node-1 node-2
  Port {port}
  User {user}
  IdentityFile {folder}/id
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  BatchMode yes
  LogLevel ERROR
Host * !node-1 !node-2
  ProxyCommand false
"""


@contextmanager
def loop_sshd(folder: Path, path: str) -> Iterator[Path]:
    """The server; yields a folder for PATH whose `ssh` knows HOSTS. `path` is the PATH of remote commands."""
    server, client = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"), shutil.which("ssh")
    names = {"folder": folder, "port": free_port(), "user": getpass.getuser(), "path": path}
    for key in ("host_key", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd_config").write_text(SERVER.format(**names))
    (folder / "ssh_config").write_text(CLIENT.format(**names))
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {client} -F {folder}/ssh_config "$@"\n')
    (folder / "bin/ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # where a server that separates privileges wants to be
    command = [server, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    daemon = subprocess.Popen(command)
    try:
        yield folder / "bin"
    finally:
        daemon.terminate()
        daemon.wait(10)

"""A private Slurm cluster of two nodes on loopback, for tests: its own daemons, files and ports, without munge.

Jobs of the partition `urgent` preempt those of `main`, which have a minute's grace.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(name, path=SEARCH)]

NODES = ("127.0.0.1", "127.0.0.2")
"""The nodes are called by addresses, so that their names resolve. Both daemons listen on 127.0.0.1, at other ports."""

CONFIGURATION = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=10
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class MiniSlurm:
    """Commands for the running cluster."""

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        """What clients need, and what jobs inherit."""

    def __call__(self, *words: object, cwd: Path | None = None) -> str:
        """Runs a command of Slurm's, or a script that uses them; returns what it prints."""
        command = [str(w) for w in words]
        return subprocess.run(
            command, cwd=cwd, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode, Restarts, ..."""
        return dict(word.partition("=")[::2] for word in self("scontrol", "--oneliner", "show", "job", number).split())

    def finish(self, number: str, timeout: float) -> dict[str, str]:
        """Waits until the job is over."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_until(lambda: self.job(number)["JobState"] in over, timeout)
        return self.job(number)


@contextmanager
def mini_slurm(folder: Path, environment: dict[str, str]) -> Iterator[MiniSlurm]:
    """The cluster, with its files in an empty folder; jobs are cancelled and daemons ended in all cases."""
    (folder / "state").mkdir(parents=True)
    names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "nodes": NODES}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=_free_ports(3), **names))
    clean = {k: v for k, v in environment.items() if not k.startswith(("SLURM", "SBATCH"))}
    slurm = MiniSlurm(clean | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{clean['PATH']}:/usr/sbin:/sbin"})
    with ExitStack() as cleanup:
        for words in (["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            cleanup.callback(_end, subprocess.Popen(words, env=slurm.environment, stderr=subprocess.DEVNULL))
        wait_until(lambda: slurm("sinfo", "--noheader", "--states=idle", "--format=%D") == str(len(NODES)), 30)
        cleanup.callback(_cancel_jobs, slurm)
        yield slurm


def wait_until(true: Callable[[], bool], timeout: float) -> None:
    """Polls. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if true():
                return
        except subprocess.CalledProcessError:
            pass  # a daemon that is not up yet
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s")
        time.sleep(0.2)


def _cancel_jobs(slurm: MiniSlurm) -> None:
    slurm("scancel", "--user", getpass.getuser())
    wait_until(lambda: not slurm("squeue", "--noheader"), 30)


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]

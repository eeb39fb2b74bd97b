"""Every launcher that docs/operations.md names starts, stops and resumes a run: one run, handed from one to the next."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import BadInput
from pipeline.core.log import rank
from pipeline.core.run_directory import read_metrics
from pipeline.distributed.default_ranks import relaunch_command
from pipeline.distributed.launcher_env import check_hostfile, free_port, normalize_launcher_env
from pipeline.evaluation.answer_cache import Shard
from tests import launch, tiny
from tests.loop_sshd import loop_sshd
from tests.mini_slurm import wait_until

TAIL = "pipeline/distill.py --deepspeed ds_configs/zero3.json"
LOCAL = f"deepspeed --hostfile hostfiles/local --no_ssh --node_rank 0 --master_addr 127.0.0.1 {TAIL}"
PDSH = f"deepspeed --hostfile hostfiles/two_nodes --master_addr node-1 {TAIL}"
TORCHRUN = f"torchrun --nproc_per_node 2 {TAIL}"
MPI = f"mpirun -n 2 python {TAIL}"
MPI_NODES = f"mpirun --hostfile hostfiles/two_nodes -x MASTER_ADDR=node-1 -x PATH python {TAIL}"


def test_the_documented_commands_are_these():
    text = re.sub(r"\\?\s+", " ", (launch.ROOT / "docs/operations.md").read_text())
    for command in (LOCAL, PDSH, TORCHRUN, MPI, MPI_NODES):
        assert command in text


@pytest.mark.parametrize("option", [["--hostfile", "nowhere"], ["-H", "nowhere"], ["--hostfile=nowhere"]])
def test_a_missing_hostfile_is_noticed(option):
    with pytest.raises(BadInput, match="no hostfile nowhere"):
        check_hostfile([["sh"], ["python", "/bin/deepspeed", *option, "pipeline/distill.py", "--recipe", "demo"]])


def test_other_words_are_no_hostfile():
    check_hostfile([["python", "/bin/deepspeed", "--hostfile", "hostfiles/local", "x.py", "--hostfile", "nowhere"]])
    check_hostfile([["python", "other.py", "--hostfile", "nowhere"], []])


LAUNCH = ["python", "-u", "-m", "deepspeed.launcher.launch"]
NODE = [*LAUNCH, "--world_info=eyJsb2NhbGhvc3QiOiBbMF19", "--save_pid", "7", TAIL]
"""The node launcher of one rank: {"localhost": [0]}."""
TWO = [*LAUNCH, "--world_info=eyJsb2NhbGhvc3QiOiBbMCwgMV19", TAIL]


@pytest.mark.parametrize(
    ("runner", "node", "expected"),
    [
        (["python", "/bin/deepspeed", *TAIL.split()], NODE, TWO),
        (["python", "/bin/deepspeed", "--master_port", "1", *TAIL.split(), "--include", "x"], NODE, TWO),
        (["python", "/bin/deepspeed", "--num_gpus", "1", *TAIL.split()], NODE, []),
        (["python", "/bin/deepspeed", "--num_accel=1", *TAIL.split()], NODE, []),
        (["python", "/bin/deepspeed", "-H", "hostfiles/local", *TAIL.split()], NODE, []),
        (["python", "/bin/deepspeed", *TAIL.split()], TWO, []),
        (["python", "/bin/torchrun", *TAIL.split()], ["bash"], []),
        (["bash"], NODE, []),  # the node launcher by itself: its number counts
    ],
)
def test_a_plain_deepspeed_means_two_ranks(runner, node, expected):
    assert relaunch_command([node, runner, ["bash"]]) == expected


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment that no launcher has touched."""
    for name in [
        n for n in os.environ if n.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM", "OMPI", "PMI"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return os.environ


@pytest.mark.parametrize(
    "theirs",
    [
        {"OMPI_COMM_WORLD_RANK": 3, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_RANK": 1, "OMPI_COMM_WORLD_LOCAL_SIZE": 2},
        {"PMI_RANK": 3, "PMI_SIZE": 4, "MPI_LOCALRANKID": 1, "MPI_LOCALNRANKS": 2},
    ],
    ids=["Open MPI", "MPICH"],
)  # fmt: skip
def test_ranks_of_mpirun_know_their_numbers(environment, theirs):
    environment |= {name: str(value) for name, value in theirs.items()}
    with pytest.raises(BadInput, match="mpirun -x MASTER_ADDR=NODE"):
        normalize_launcher_env()
    environment["MASTER_ADDR"] = "node-1"
    normalize_launcher_env()
    ours = [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    assert ours == ["3", "4", "1", "2"]


def test_ranks_that_do_not_know_of_one_another_are_refused(environment):
    environment["SLURM_STEP_NUM_TASKS"] = "4"
    with pytest.raises(BadInput, match="srun started 4 ranks"):
        normalize_launcher_env()


def test_compiled_code_stays_on_the_node_and_with_its_user(environment, tmp_path):
    for name in ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR"):  # inductor sets its own in a process that compiles
        environment.pop(name, None)
    normalize_launcher_env()
    folder = tmp_path / f"tide-{os.getuid()}"
    assert environment["TORCH_EXTENSIONS_DIR"] == str(folder / "torch_extensions")
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "torchinductor")
    folder.chmod(0o777)
    with pytest.raises(BadInput, match="not this user's alone"):
        normalize_launcher_env()
    folder.rmdir()
    for make in (folder.touch, partial(folder.symlink_to, tmp_path / "nowhere"), partial(folder.symlink_to, tmp_path)):
        make()
        with pytest.raises(BadInput, match="not this user's alone"):
            normalize_launcher_env()
        folder.unlink()


def test_what_an_earlier_job_left_in_the_environment_does_not_count(environment):
    environment |= {"RANK": "1", "LOCAL_RANK": "", "MASTER_ADDR": "node-17.cluster", "MASTER_PORT": "29500"}
    assert rank() == 0
    normalize_launcher_env()
    assert not {"RANK", "LOCAL_RANK"} & environment.keys()
    assert environment["MASTER_ADDR"] == "127.0.0.1" and environment["MASTER_PORT"] != "29500"
    assert str(Shard.parse("", {"SLURM_ARRAY_TASK_ID": "3"})) == "0/1"


ORPHAN = """
import os, sys, time
sys.path.insert(0, {root!r})
from pipeline.core.errors import StoppedEarly
from pipeline.distributed.signals import StopSignals
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
try:
    StopSignals()
except StoppedEarly as stop:
    print(stop, flush=True)
"""


def test_a_rank_whose_launcher_died_before_it_could_look_does_not_train(tmp_path):
    (tmp_path / "rank.py").write_text(ORPHAN.format(root=str(launch.ROOT)))
    launcher = 'WORLD_SIZE=1 "$0" "$1" $$ &'
    done = subprocess.run(["sh", "-c", launcher, sys.executable, tmp_path / "rank.py"], capture_output=True, text=True)
    assert done.stdout == "the launcher ended while this rank was starting\n", done.stderr


LAUNCHER = """
import signal, subprocess, sys, time
import psutil
rank = psutil.Popen([sys.executable, *sys.argv[1:]])
def stop(*_):
    rank.terminate()
    _, alive = psutil.wait_procs([rank], timeout=0.5)
    print("killed" if alive else "ended", flush=True)
    for left in alive:
        left.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
time.sleep(60)
"""
RANK = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.distributed.signals import StopSignals
stop = StopSignals()
stop.defer()
Path("ready").touch()
while not stop.seen:
    time.sleep(0.01)
time.sleep(1.5)
Path("saved").touch()
"""


def test_deepspeed_s_launcher_waits_until_a_long_step_is_saved(tmp_path):
    """A stand-in for it, which gives its rank half a second."""
    package = tmp_path / "deepspeed/launcher"
    package.mkdir(parents=True)
    for file in (package.parent / "__init__.py", package / "__init__.py"):
        file.touch()
    (package / "launch.py").write_text(LAUNCHER)
    (tmp_path / "rank.py").write_text(RANK.format(root=str(launch.ROOT)))
    words = [sys.executable, "-m", "deepspeed.launcher.launch", "rank.py"]
    place = launch.ENVIRONMENT | {"WORLD_SIZE": "1", "RANK": "0"}
    process = subprocess.Popen(words, cwd=tmp_path, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    output, errors = process.communicate(timeout=30)
    assert (tmp_path / "saved").exists() and output == b"ended\n"
    assert errors == b"stopping: the step that runs is taken and saved first\n"


@pytest.fixture(scope="module")
def long_steps(tmp_path_factory) -> Path:
    """A recipe whose steps take thousands of rows, ten at a time: longer than the 30 s that DeepSpeed's launcher gives."""
    optim = {"steps": 9, "lr": 0.01, "global_batch": 6000, "micro_tokens": 500}
    return tiny.make(tmp_path_factory.mktemp("long"), rows=6000, optim=optim)


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_deepspeed_s_group_waits_for_a_step_of_more_than_30_seconds(number, long_steps, tmp_path):
    """As Ctrl-C does: it comes to `deepspeed`, its launcher and the ranks, all at once."""
    run, log = tmp_path / "run", tmp_path / "log"
    listening = ["env", "--default-signal=INT"]  # what a shell starts in the background ignores it
    words = [*listening, *launch.launcher(2), "pipeline/distill.py", "--recipe", long_steps, "--run_dir", run]
    with log.open("wb") as output:
        process = launch.popen(*words, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: "KL from llada2, step 0" in log.read_text(), 600)  # the first step begins
        time.sleep(3)
        os.killpg(process.pid, number)
        told = time.monotonic()
        assert process.wait(30) == -number
        wait_until((run / "status/distill.json").is_file, 900)
        if (took := time.monotonic() - told) < 31:
            pytest.skip(f"its step took {took:.0f} s on this machine, which DeepSpeed grants: give it more rows")
        wait_until(lambda: not group_lives(process.pid), 60)
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    status, said = tiny.status(run), log.read_text()
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 75, 1)
    assert [folder.name for folder in complete_checkpoints(run)] == ["step-00000001"]
    ours = [line for line in said.splitlines() if "stop" in line]
    assert ours == [
        "stopping: the step that runs is taken and saved first",
        "distill: stopped as asked at step 1/9: run the same command to go on (exit code 75)",
    ]
    assert said.count("Traceback") == (number == signal.SIGINT), "`deepspeed`'s own KeyboardInterrupt"


def group_lives(number: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.launch
def test_deepspeed_with_a_missing_hostfile_ends():
    done = launch.run("deepspeed", "--hostfile", "nowhere", *TAIL.split(), code=None)
    assert done.returncode and "distill: no hostfile nowhere" in done.stderr


def missing(*programs: str) -> pytest.MarkDecorator:
    """Skips where a program is not installed, and says how to install it."""
    lacking = [p for p in programs if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin")]
    packages = {"sshd": "openssh-server", "pdsh": "pdsh", "mpirun.openmpi": "openmpi-bin"}
    names = " ".join(packages[p] for p in lacking)
    return pytest.mark.skipif(bool(lacking), reason=f"no {', '.join(lacking)} (Debian: apt-get install {names})")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Iterator[str]:
    """PATH with an ssh that reaches node-1 and node-2, both this machine."""
    if not shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"):
        yield launch.ENVIRONMENT["PATH"]
        return
    with loop_sshd(tmp_path_factory.mktemp("ssh"), launch.ENVIRONMENT["PATH"]) as programs:
        yield f"{programs}:{launch.ENVIRONMENT['PATH']}"


@pytest.fixture(scope="module")
def place(checkout) -> Path:
    """A checkout with the aligned dataset, and hostfiles of one rank per node."""
    hosts = checkout / "hostfiles/two_nodes"
    hosts.write_text(re.sub(r"slots=\d+", "slots=1", hosts.read_text()))
    launch.run("python", "pipeline/align.py", *WORDS, cwd=checkout)
    return checkout


STEPS = 200
WORDS = ["--name", "handed", "--teachers", "[]", *launch.SHORT]
WORDS += f"--optim.steps {STEPS} --optim.global_batch 8 --checkpoint.every_steps 0".split()


def trained(run: Path) -> list[int]:
    """Steps in metrics.jsonl."""
    return [line["step"] for line in read_metrics(run) if line["kind"] == "train"]


def signal_one_rank(_: subprocess.Popen, run: Path) -> None:
    """SIGUSR1 to any rank of this run; all of them stop."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"pipeline/distill.py" in words[1:3] and (entry / "cwd").resolve() == run.parents[1]:
                return os.kill(int(entry.name), signal.SIGUSR1)
        except OSError:
            continue
    raise AssertionError("no rank is running")


@pytest.mark.slow
@pytest.mark.launch
class TestHandedOn:
    """Each launcher trains on from where the one before was stopped; the last to the end."""

    def steps(self, command: str, place: Path, path: str, stop: Callable | None, **environment: str) -> None:
        """`stop(process, run)` is called after three steps; without it, the run goes on to the end."""
        run = place / "runs/handed"
        before = trained(run)
        port = str(free_port())
        for ours, theirs in {
            "MASTER_ADDR=node-1": f"MASTER_ADDR=127.0.0.1 -x MASTER_PORT={port}",
            "addr node-1": "addr 127.0.0.1",
            "deepspeed --host": f"deepspeed --master_port {port} --host",
            "torchrun": f"torchrun --master_port {port}",
        }.items():
            command = command.replace(ours, theirs)
        loopback = {"PATH": path, "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = launch.ENVIRONMENT | loopback | environment
        passed_on = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "PATH")
        (place / ".deepspeed_env").write_text("".join(f"{name}={variables[name]}\n" for name in passed_on))
        log = place / "launcher.log"
        with log.open("w") as file:
            process = launch.popen(
                *command.split(), *WORDS, cwd=place, env=variables, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + 240
            while stop and len(trained(run)) < len(before) + 3:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.1)
            if stop:
                stop(process, run)
            process.wait(240)
        finally:
            process.kill()
        status = json.loads((run / "status/distill.json").read_text())
        expected = ("stopped", 75) if stop else ("done", 0)
        assert (status["state"], status["exit_code"]) == expected, log.read_text()[-4000:]
        assert json.loads((run / "environment.json").read_text())["world_size"] == 2
        steps = trained(run)
        assert steps == list(range(1, len(steps) + 1)) and len(steps) > len(before)

    def test_one_machine(self, place, path):
        self.steps(LOCAL, place, path, signal_one_rank)

    @missing("sshd", "pdsh")
    def test_two_nodes_by_pdsh(self, place, path):
        self.steps(PDSH, place, path, signal_one_rank)

    def test_torchrun(self, place, path):
        self.steps(TORCHRUN, place, path, lambda process, _: process.terminate())

    @missing("sshd", "mpirun.openmpi")
    def test_two_nodes_by_open_mpi(self, place, path):
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        loopback = {"OMPI_MCA_oob_tcp_if_include": "lo", "OMPI_MCA_btl_tcp_if_include": "lo"}
        command = MPI_NODES.replace("mpirun", "mpirun.openmpi --bind-to none -x GLOO_SOCKET_IFNAME -x DS_ACCELERATOR")
        self.steps(command, place, path, lambda process, _: process.send_signal(signal.SIGUSR1), **root, **loopback)

    def test_mpirun_to_the_end(self, place, path):
        self.steps(MPI, place, path, None)

"""slurm/ and hostfiles/: the scripts' rules with stand-ins for Slurm's commands, then whole jobs under real daemons."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from pipeline.config.recipe import Recipe
from pipeline.core.run_directory import read_metrics
from tests import launch
from tests.mini_slurm import MISSING, NODES, MiniSlurm, mini_slurm, wait_until

SCRIPTS = sorted((launch.ROOT / "slurm").glob("*.sh"))
JOBS = [script for script in SCRIPTS if "#SBATCH" in script.read_text()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_leave_hyperparameters_to_recipes(script):
    launch.run("bash", "-n", script)
    code = "\n".join(line for line in script.read_text().splitlines() if not re.match(r"#(?!SBATCH)", line))
    assert not re.search(rf"(?<!\S)--({'|'.join(Recipe.__dataclass_fields__)})\b", code)
    assert script.name in ("site.sh", "common.sh") or "set -euo pipefail" in code


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_jobs_are_put_back_and_leave_facts_of_the_cluster_to_one_file(script):
    options = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(), re.MULTILINE)
    assert {"requeue", "open-mode", "signal", "ntasks-per-node"} <= set(options)
    assert not {"partition", "account", "time", "gpus-per-node", "gres", "qos", "constraint", "mem"} & set(options)
    assert "sbatch" in launch.run("bash", script, code=1, SLURM_JOB_ID="").stderr


@pytest.mark.parametrize(("name", "hosts"), [("local", {"localhost": 2}), ("two_nodes", {"node-1": 8, "node-2": 8})])
def test_hostfiles(name, hosts):
    assert fetch_hostfile(str(launch.ROOT / "hostfiles" / name)) == hosts


SRUN = """# a step that may save a checkpoint, write a status file, be warned and wait for the warning, and ends
echo "$@" > "$RUN/step"
[ -z "$SAVES" ] || { mkdir -p "$RUN/checkpoints/step-$SAVES" && touch "$RUN/checkpoints/step-$SAVES/COMPLETE"; }
[ -z "$WARNED" ] || { trap 'touch "$RUN/told"' USR1; kill -USR1 $PPID; until [ -e "$RUN/told" ]; do sleep 0.05; done; }
[ -z "$KILLED" ] || rm "$RUN/status/distill.json"
[ -z "$STATUS" ] || printf '{"exit_code": %s, "message": "m"}' "$STATUS" > "$RUN/status/distill.json"
exit "$RETURNS"
"""

STAND_INS = {"srun": SRUN, "squeue": 'echo "$STATE"\n', "scontrol": 'echo "$@" >> "$RUN/asked"\n[ "$1" = show ]\n'}


def program(file: Path, text: str) -> None:
    """An executable script of bash."""
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)


@pytest.fixture
def job(tmp_path) -> Callable:
    """Runs the distill job with stand-ins, in a run directory that holds an earlier run's status."""
    for name, text in STAND_INS.items():
        program(tmp_path / name, text)
    shutil.copytree(launch.ROOT / "slurm", tmp_path / "slurm", ignore=shutil.ignore_patterns("*.log", "*.starts"))
    (tmp_path / "pipeline").symlink_to(launch.ROOT / "pipeline")
    (tmp_path / "status").mkdir()
    (tmp_path / "status/distill.json").write_text('{"exit_code": 75}')
    slurm = {f"SLURM_{name}": "1" for name in ("JOB_ID", "JOB_NAME", "JOB_NODELIST", "NNODES")}
    environment = {"RUN": str(tmp_path), "PATH": f"{tmp_path}:{launch.ENVIRONMENT['PATH']}", **slurm}

    def run(*words: str, **step: str):
        step = {"STATE": "RUNNING", "RETURNS": "0", "STATUS": "", "SAVES": "", "WARNED": "", "KILLED": "", **step}
        (tmp_path / "asked").unlink(missing_ok=True)
        words = ("bash", "slurm/distill.sh", "--run_dir", tmp_path, *words)
        return launch.run(*words, code=None, cwd=tmp_path, **environment, **step)

    return run


def requeued(run: Path) -> bool:
    return "requeue 1" in (run / "asked").read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "again", "step"),
    [
        (0, False, "RETURNS=0 STATUS=0"),
        (2, False, "RETURNS=1 STATUS=2"),
        (1, False, "RETURNS=0 STATUS=1"),
        (143, False, "RETURNS=143"),  # it did not come far: the status file is an earlier run's
        (137, False, "RETURNS=137 KILLED=yes"),
        (0, False, "RETURNS=0"),  # a finished run is left alone, and so is its status file
        (75, True, "RETURNS=1 STATUS=75"),
        (75, True, "RETURNS=1 STATUS=75 WARNED=yes"),
        (75, True, "RETURNS=138 WARNED=yes"),  # warned before it could hear
        (1, False, "RETURNS=1 STATUS=1 WARNED=yes"),
        (0, False, "RETURNS=0 STATUS=0 WARNED=yes"),  # the last stage: nothing is left to do
        (75, False, "RETURNS=1 STATUS=75 STATE=COMPLETING"),  # cancelled
    ],
)
def test_a_jobs_exit_code_and_its_return_to_the_queue(job, tmp_path, code, again, step):
    done = job(**dict(word.split("=") for word in step.split()))
    assert done.returncode == code, done.stderr
    assert requeued(tmp_path) == again


@pytest.mark.parametrize(("gpus", "engine"), [("", "zero3"), ("0", "zero3"), ("8", "zero3_bf16")])
def test_the_engine_follows_the_device(job, tmp_path, gpus, engine):
    done = job(**({"SLURM_GPUS_ON_NODE": gpus} if gpus else {}))
    assert f"--deepspeed ds_configs/{engine}.json" in (tmp_path / "step").read_text()
    assert f"ranks per node: {int(gpus or 0) or 2}," in done.stdout
    job(DS_CONFIG="mine.json")
    assert "--deepspeed mine.json" in (tmp_path / "step").read_text()


@pytest.fixture
def container(job, tmp_path) -> Path:
    """A stand-in for Apptainer. Programs of the environment refuse to start outside of it."""
    return write_container(tmp_path)


def write_container(folder: Path) -> Path:
    """`container WORDS` runs them; python and torchrun, first on PATH in the folder, are only found within."""
    programs = {"container": 'WITHIN=yes exec "$@"', "prolog": "echo export WITHIN=yes"}
    for name in ("python", "torchrun"):
        programs[name] = (
            f'[ -n "${{WITHIN:-}}" ] || {{ echo "{name} outside" >&2; exit 97; }}\nexec {launch.BIN}/{name} "$@"'
        )
    for name, text in programs.items():
        program(folder / name, text)
    return folder / "container"


PYXIS = """# options of the container are known by their name; a step of a distillation does nothing
echo "$@" >> "$RUN/steps"
for word; do [[ $word != --container-image=* ]] || export WITHIN=yes; done
while [[ $1 == --* ]]; do shift; done
[ "$1" = bash ] || exec "$@"
[ -n "$WITHIN" ] && printf '{"exit_code": 0, "message": "m"}' > "$RUN/status/distill.json"
"""


def test_every_python_of_a_job_is_within_the_container(job, container, tmp_path):
    assert "python outside" in job(STATUS="0").stderr
    done = job(CONTAINER=str(container), STATUS="0")
    assert (done.returncode, done.stderr) == (0, "")
    program(tmp_path / "srun", PYXIS)
    done = job(CONTAINER="--container-image=x --container-workdir=y", SLURM_CPUS_ON_NODE="8")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "steps").read_text().count("--container-image=x --container-workdir=y") == 3
    environment = {"PATH": f"{tmp_path}:{launch.ENVIRONMENT['PATH']}", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    environment |= {"RANKS_PER_NODE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    environment |= {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    for script in ("slurm/node.sh", "slurm/shard.sh"):
        assert "outside" in launch.run("bash", script, code=97, cwd=tmp_path, **environment).stderr
        program(tmp_path / "container", "exec true")
        launch.run("bash", script, cwd=tmp_path, INSIDE=str(container), **environment)


def test_a_warning_too_early_for_a_short_limit_waits(job, tmp_path):
    end = int(time.time()) + 9  # a quarter of 12 s is 3 s
    limits = {"SLURM_JOB_START_TIME": str(end - 12), "SLURM_JOB_END_TIME": str(end)}
    done = job(RETURNS="1", STATUS="75", WARNED="yes", **limits)
    assert "too early under a limit of 12 s" in done.stdout and "told to stop (USR1)" in done.stdout
    assert done.returncode == 75 and requeued(tmp_path) and time.time() > end - 4


def test_the_image_is_made_by_the_makefile_s_pip():
    """Its definition installs by the pinned files."""
    image, makefile = ((launch.ROOT / name).read_text() for name in ("slurm/tide.def", "Makefile"))
    pins = re.search(r"\$\(PIP\) (pip==\S+ setuptools==\S+)", makefile)[1]
    assert pins in image and "-c constraints.txt -r requirements.txt" in image


SITE = """LOG_FOLDER=logs/here
GPU_JOBS="--gres=gpu:h100:8 --exclusive"
ONE_GPU_JOBS="--gpus-per-node=1"
CPU_JOBS="--cpus-per-task=4"
"""


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("distill_moe", "--gres=gpu:h100:8 --exclusive"),
        ("distill", "--gres=gpu:h100:8 --exclusive"),
        ("study", "--gres=gpu:h100:8 --exclusive"),
        ("evaluate", "--gpus-per-node=1"),
        ("watch", "--gpus-per-node=1"),
        ("align", "--cpus-per-task=4"),
        ("report", "--cpus-per-task=4"),
    ],
)
def test_a_job_asks_for_what_its_kind_needs(job, tmp_path, name, asks):
    (tmp_path / "slurm/site.sh").write_text(SITE)
    program(tmp_path / "sbatch", 'echo "$@"')
    path = f"{tmp_path}:{launch.ENVIRONMENT['PATH']}"
    words = ("bash", "slurm/submit.sh", "--nodes=2", name, "--recipe", "x y")
    done = launch.run(*words, cwd=tmp_path, PATH=path)
    number = "%A_%a" if name == "study" else "%j"
    assert done.stdout == f"--output=logs/here/%x-{number}.log {asks} --nodes=2 slurm/{name}.sh --recipe x y\n"
    assert (tmp_path / "logs/here").is_dir()
    assert "no job node" in launch.run("bash", "slurm/submit.sh", "node", cwd=tmp_path, PATH=path, code=2).stderr


@pytest.mark.parametrize(("local", "visible", "own"), [(1, "4,6", "6"), (1, "", "1")])
def test_a_shard_has_a_gpu_of_its_own(tmp_path, local, visible, own):
    program(tmp_path / "python", 'echo "$CUDA_VISIBLE_DEVICES: $@"')
    task = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": str(local), "SLURM_GPUS_ON_NODE": "2"}
    task |= {"RANKS_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": visible, "PATH": f"{tmp_path}:{launch.ENVIRONMENT['PATH']}"}
    done = launch.run("bash", "slurm/shard.sh", "--recipe", "x", **task)
    assert done.stdout == f"{own}: pipeline/evaluate.py --shard 3/4 --recipe x\n"


@pytest.mark.parametrize(("words", "threads"), [({}, 8), ({"OMP_NUM_THREADS": "3"}, 3)])
def test_ranks_of_a_node_share_its_cores(tmp_path, words, threads):
    """torchrun would set one thread where the variable is missing."""
    for name, text in {"torchrun": 'echo "$OMP_NUM_THREADS $GLOO_SOCKET_IFNAME"', "nproc": "echo 32"}.items():
        program(tmp_path / name, text)
    node = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", "RANKS_PER_NODE": "4"}
    node |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "GLOO_SOCKET_IFNAME": "ib0", **words}
    done = subprocess.run(
        ["bash", "slurm/node.sh"], cwd=launch.ROOT, env=node, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{threads} ib0\n"


def test_starts_that_finish_nothing_end(job, tmp_path):
    stopped = {"RETURNS": "1", "STATUS": "75"}
    for saves in ["", "", "1", "", "", ""]:  # the third start saves a checkpoint
        done = job(SAVES=saves, **stopped)
        assert done.returncode == 75 and requeued(tmp_path), done.stdout
    done = job(**stopped)
    assert done.returncode == 1 and not requeued(tmp_path)
    assert "the last 3 starts finished no shard, checkpoint or score" in done.stdout


def test_bad_input_is_one_line_before_any_stage_starts(job):
    done = job("--optim.lr", "fast")
    assert done.returncode == 2 and "== distill" not in done.stdout
    assert done.stderr.count("\n") == 1 and "optim.lr" in done.stderr


MISSING_SLURM = f"Slurm is not installed: no {', '.join(MISSING)} (Debian: apt-get install slurm-wlm)"
REAL = [pytest.mark.slow, pytest.mark.launch, pytest.mark.skipif(bool(MISSING), reason=MISSING_SLURM)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[MiniSlurm]:
    """Two nodes. Jobs compile their ops in a folder of the test's."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(tmp_path_factory.mktemp("scratch"))}
    with mini_slurm(tmp_path_factory.mktemp("slurm") / "cluster", launch.ENVIRONMENT | loopback) as cluster:
        yield cluster


@contextmanager
def within(slurm: MiniSlurm, folder: Path, setting: str) -> Iterator[None]:
    """Jobs find python in a container alone, whose `setting` stands in slurm/site.sh."""
    write_container(folder)
    before = dict(slurm.environment)
    slurm.environment |= {"CONTAINER": setting, "PATH": f"{folder}:{before['PATH']}"}
    yield
    slurm.environment = before


def logs(checkout: Path) -> str:
    """Ends of all logs, for a failed assertion."""
    return "\n".join(f"---- {p.name}\n{p.read_text()[-3000:]}" for p in sorted((checkout / "slurm").glob("*.log")))


def statuses(run: Path) -> dict[str, tuple[str, int]]:
    read = {path.stem: json.loads(path.read_text()) for path in (run / "status").glob("*.json")}
    return {stage: (status["state"], status["exit_code"]) for stage, status in read.items()}


class TestRealSlurm:
    pytestmark = REAL

    def test_one_job_on_two_nodes(self, slurm, checkout, tmp_path):
        """Every python runs behind the command of a container."""
        with within(slurm, tmp_path, f"{tmp_path}/container"):
            number = slurm("sbatch", "--parsable", "--nodes=2", "slurm/distill_moe.sh", *launch.SHORT, cwd=checkout)
        ended = slurm.finish(number, timeout=600)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), logs(checkout)
        run = checkout / "runs/demo"
        shards = [f"evaluate-{i}-of-4" for i in range(4)]
        assert statuses(run) == dict.fromkeys(("align", "distill", *shards, "evaluate", "report"), ("done", 0))
        ran = json.loads((run / "environment.json").read_text())
        assert (ran["world_size"], ran["expert_parallel_size"], ran["zero_stage"]) == (4, {"llada2": 2}, 3)
        score = json.loads((run / "evaluation/step-00000006/demo_arithmetic.json").read_text())
        assert score["n"] == 12 and 0 <= score["value"] <= score["high"] <= 1
        assert (run / "report.html").is_file()
        for rank in range(4):
            assert (checkout / f"slurm/distill_moe-{number}-rank{rank}.log").is_file()

    def test_stages_as_jobs_of_which_one_is_warned_and_preempted(self, slurm, checkout, tmp_path):
        """Both times the job saves, goes back into the queue and goes on; evaluation has waited for it. Every python runs in a
        step of srun that has a container's option, as pyxis wants it."""
        words = ["--name", "staged", "--data.aligned", "runs/aligned/demo", "--teachers", "[]", *launch.SHORT]
        words += ["--optim.steps", "120", "--logging.every_steps", "1", "--checkpoint.every_steps", "0"]
        slurm.environment |= {"NODES": "2", "RANKS_PER_NODE": "1"}
        with within(slurm, tmp_path, f"--task-prolog={tmp_path}/prolog"):
            submitted = slurm("bash", "slurm/pipeline.sh", *words, cwd=checkout).splitlines()
        jobs = {stage: number for number, stage in (line.split(" ") for line in submitted)}
        run = checkout / "runs/staged"
        wait_until(lambda: len(read_metrics(run)) > 3, 300)
        slurm("scancel", "--signal=USR1", "--batch", jobs["distill"])
        wait_until(lambda: statuses(run).get("distill") == ("stopped", 75), 120)
        trained = len(read_metrics(run))
        wait_until(lambda: len(read_metrics(run)) > trained, 300)
        whole_nodes = ("--partition=urgent", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4")
        urgent = slurm("sbatch", "--parsable", *whole_nodes, "--output=/dev/null", "--wrap=true")
        for stage, number in (("urgent", urgent), *jobs.items()):
            ended = slurm.finish(number, timeout=300)
            assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), f"{stage}\n{logs(checkout)}"
            assert ended["Restarts"] == ("2" if stage == "distill" else "0"), f"{stage}\n{logs(checkout)}"
        assert statuses(run) == dict.fromkeys(("align", "distill", "evaluate", "report"), ("done", 0))
        steps = [line["step"] for line in read_metrics(run) if line["kind"] == "train"]
        assert steps == list(range(1, 121))

    def test_a_watching_job_survives_its_time_limit(self, slurm, checkout):
        """It scores the checkpoint, is warned while it waits for the next one, starts again, and ends with the run."""
        run = checkout / "runs/staged"
        shutil.rmtree(run / "evaluation")
        ended = run / "status/distill.json"
        ended.rename(ended.with_suffix(".later"))  # for now, the run has not ended
        words = ["--name", "staged", *launch.SHORT]
        number = slurm("sbatch", "--parsable", "slurm/watch.sh", *words, cwd=checkout)
        best = run / "evaluation/best.json"
        wait_until(best.is_file, 240)
        slurm("scancel", "--signal=USR1", "--batch", number)
        wait_until(lambda: statuses(run).get("watch") == ("stopped", 75), 60)
        ended.with_suffix(".later").rename(ended)
        job = slurm.finish(number, timeout=240)
        assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), logs(checkout)
        assert statuses(run)["watch"] == ("done", 0)
        assert json.loads(best.read_text())["step"] == 120

    def test_a_study_as_a_job_array(self, slurm, checkout):
        """Each task has a seed; one is warned, goes back into the queue and goes on."""
        launch.python("demo/study/make_data.py", cwd=checkout)
        words = ["slurm/study.sh", "--study", "demo/study/quick.yaml"]
        array = slurm("sbatch", "--parsable", "--array=0-1", *words, cwd=checkout)
        runs = checkout / "runs/study/quick"
        wait_until((runs / "start/1/result.json").is_file, 240)
        slurm("scancel", "--signal=USR1", "--batch", f"{array}_1")
        restarts = {}
        for task in (0, 1):
            ended = slurm.finish(f"{array}_{task}", timeout=300)
            assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), logs(checkout)
            restarts[task] = ended["Restarts"]
        assert restarts == {0: "0", 1: "1"}, logs(checkout)
        assert len(list(runs.glob("*/*/result.json"))) == 6
        table = launch.python("pipeline/study.py", *words[1:], "--table", cwd=checkout).stdout
        assert re.search(r"A-calm +2 ", table), table

    def test_a_job_that_never_gets_anywhere_is_given_up(self, slurm, checkout):
        """It loses its node, is requeued twice while its ranks load, and starts a fourth time."""
        words = ["--name", "vain", "--data.aligned", "runs/aligned/demo", *launch.SHORT]
        number = slurm("sbatch", "--parsable", "slurm/distill.sh", *words, cwd=checkout)
        log = checkout / f"slurm/distill-{number}.log"
        fail = ("update", f"NodeName={NODES[0]}", "State=DOWN", "Reason=test")
        for start, disturb in enumerate([fail, ("requeue", number), ("requeue", number)], 1):
            wait_until(lambda n=start: log.is_file() and log.read_text().count(" distill\n") == n, 60)
            slurm("scontrol", *disturb)
        ended = slurm.finish(number, timeout=60)
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "3"), log.read_text()
        assert "the last 3 starts finished no shard, checkpoint or score: given up" in log.read_text()

"""slurm/ and hostfiles/: the scripts' rules with stand-ins for Slurm's commands, then whole jobs under real daemons."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from pipeline.recipe import Recipe
from tests import launch
from tests.mini_slurm import MISSING, MiniSlurm, mini_slurm, wait_until

SCRIPTS = sorted((launch.ROOT / "slurm").glob("*.sh"))
JOB = launch.ROOT / "slurm/distill_moe.sh"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_leave_hyperparameters_to_recipes(script):
    launch.run("bash", "-n", script)
    code = "\n".join(line for line in script.read_text().splitlines() if not re.match(r"#(?!SBATCH)", line))
    assert not re.search(rf"(?<!\S)--({'|'.join(Recipe.__dataclass_fields__)})\b", code)
    assert script.name == "site.sh" or "set -euo pipefail" in code


def test_cluster_facts_have_one_home():
    options = re.findall(r"^#SBATCH --([a-z-]+)", JOB.read_text(), re.MULTILINE)
    assert {"requeue", "open-mode", "signal", "ntasks-per-node"} <= set(options)
    assert not {"partition", "account", "time", "gpus-per-node", "gres", "qos", "constraint", "mem"} & set(options)


@pytest.mark.parametrize(("name", "hosts"), [("local", {"localhost": 2}), ("two_nodes", {"node-1": 8, "node-2": 8})])
def test_hostfiles(name, hosts):
    assert fetch_hostfile(str(launch.ROOT / "hostfiles" / name)) == hosts


SRUN = """# a step that may save a checkpoint, write a status file, be warned and wait for the warning, and ends
[ -z "$SAVES" ] || { mkdir -p "$RUN/checkpoints/step-00000009" && touch "$RUN/checkpoints/step-00000009/COMPLETE"; }
[ -z "$WARNED" ] || { trap 'touch "$RUN/told"' USR1; kill -USR1 $PPID; until [ -e "$RUN/told" ]; do sleep 0.05; done; }
[ -z "$STATUS" ] || printf '{"exit_code": %s}' "$STATUS" > "$RUN/status/distill.json"
exit "$RETURNS"
"""

STAND_INS = {"srun": SRUN, "squeue": 'echo "$STATE"\n', "scontrol": 'echo "$@" >> "$RUN/asked"\n[ "$1" = show ]\n'}


@pytest.fixture
def job(tmp_path) -> Callable:
    """Runs the job's distill stage with stand-ins, in a run directory that holds an earlier run's status."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "status").mkdir()
    (tmp_path / "status/distill.json").write_text('{"exit_code": 75}')
    slurm = {f"SLURM_{name}": "1" for name in ("JOB_ID", "JOB_NAME", "JOB_NODELIST", "NNODES")}
    environment = {"RUN": str(tmp_path), "PATH": f"{tmp_path}:{launch.ENVIRONMENT['PATH']}", **slurm}

    def run(*words: str, **step: str):
        step = {"STATE": "RUNNING", "RETURNS": "0", "STATUS": "", "SAVES": "", "WARNED": "", **step}
        return launch.run("bash", JOB, "distill", "--run_dir", tmp_path, *words, code=None, **environment, **step)

    return run


@pytest.mark.parametrize(
    ("code", "requeued", "step"),
    [
        (0, False, "RETURNS=0 STATUS=0"),
        (2, False, "RETURNS=1 STATUS=2"),
        (1, False, "RETURNS=0 STATUS=1"),
        (143, False, "RETURNS=143"),  # killed: the status file is an earlier run's
        (0, False, "RETURNS=0"),  # a finished run is left alone, and so is its status file
        (75, True, "RETURNS=1 STATUS=75 SAVES=yes"),
        (75, True, "RETURNS=1 STATUS=75 SAVES=yes WARNED=yes"),
        (75, False, "RETURNS=1 STATUS=75 WARNED=yes"),  # no progress: it would stop there again
        (75, False, "RETURNS=1 STATUS=75 SAVES=yes STATE=COMPLETING"),  # cancelled
    ],
)
def test_a_jobs_exit_code_and_its_return_to_the_queue(job, tmp_path, code, requeued, step):
    done = job(**dict(word.split("=") for word in step.split()))
    assert done.returncode == code, done.stderr
    assert ("requeue 1" in (tmp_path / "asked").read_text().splitlines()) == requeued


def test_bad_input_is_one_line_before_any_stage_starts(job):
    done = job("--optim.lr", "fast")
    assert done.returncode == 2 and "== distill" not in done.stdout
    assert done.stderr.count("\n") == 1 and "optim.lr" in done.stderr


def test_the_job_script_says_how_to_start_it():
    assert "sbatch" in launch.run("bash", JOB, code=1, SLURM_JOB_ID="").stderr


MISSING_SLURM = f"Slurm is not installed: no {', '.join(MISSING)} (Debian: apt-get install slurm-wlm)"
REAL = [
    pytest.mark.slow,
    pytest.mark.launch,
    pytest.mark.skipif(bool(MISSING), reason=MISSING_SLURM),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[MiniSlurm]:
    """Two nodes. Jobs compile their ops in a folder of the test's."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "TMPDIR": str(tmp_path_factory.mktemp("scratch"))}
    with mini_slurm(tmp_path_factory.mktemp("slurm") / "cluster", launch.ENVIRONMENT | loopback) as cluster:
        yield cluster


def logs(checkout: Path) -> str:
    """Ends of all logs, for a failed assertion."""
    return "\n".join(f"---- {p.name}\n{p.read_text()[-3000:]}" for p in sorted((checkout / "slurm").glob("*.log")))


def statuses(run: Path) -> dict[str, tuple[str, int]]:
    read = {path.stem: json.loads(path.read_text()) for path in (run / "status").glob("*.json")}
    return {stage: (status["state"], status["exit_code"]) for stage, status in read.items()}


class TestRealSlurm:
    pytestmark = REAL

    def test_one_job_on_two_nodes(self, slurm, checkout):
        number = slurm("sbatch", "--parsable", "--nodes=2", "slurm/distill_moe.sh", *launch.SHORT, cwd=checkout)
        ended = slurm.finish(number, timeout=600)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), logs(checkout)
        run = checkout / "runs/demo"
        assert statuses(run) == dict.fromkeys(("align", "distill", "evaluate", "report"), ("done", 0))
        assert json.loads((run / "environment.json").read_text())["world_size"] == 2
        score = json.loads((run / "evaluation/step-00000006/demo_arithmetic.json").read_text())
        assert score["n"] == 12 and 0 <= score["value"] <= score["high"] <= 1
        assert (run / "report.html").is_file()
        for node in (0, 1):
            assert (checkout / f"slurm/distill_moe-{number}-node{node}.log").is_file()

    def test_stages_as_jobs_of_which_one_is_warned(self, slurm, checkout):
        """The warned job saves, goes back into the queue and ends there; evaluation has waited for it."""
        words = ["--name", "staged", "--data.aligned", "runs/aligned/demo", "--teachers", "[]", *launch.SHORT]
        words += ["--optim.steps", "60", "--logging.every_steps", "1", "--checkpoint.every_steps", "0"]
        slurm.environment["NODES"] = "2"
        submitted = slurm("bash", "slurm/pipeline.sh", *words, cwd=checkout).splitlines()
        jobs = {stages: number for number, stages in (line.split(" ", 1) for line in submitted)}
        run = checkout / "runs/staged"
        metrics = run / "metrics.jsonl"
        wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 3, 300)
        slurm("scancel", "--signal=USR1", "--batch", jobs["distill"])
        for stages, number in jobs.items():
            ended = slurm.finish(number, timeout=300)
            assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), f"{stages}\n{logs(checkout)}"
            assert ended["Restarts"] == ("1" if stages == "distill" else "0"), stages
        assert statuses(run) == dict.fromkeys(("align", "distill", "evaluate", "report"), ("done", 0))
        steps = [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if line["kind"] == "train"]
        assert steps == list(range(1, 61))

"""Every stage starts as a script and as a module, from the repository root, without a network."""

from __future__ import annotations

import tomllib

import pytest

from tests import launch

# The first thing that Python imports: forbids connections and tells what of sys.path would hide other packages.
GUARD = """
import atexit, sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"{event} {arguments}")
sys.addaudithook(hook)
atexit.register(lambda: print("HIDING", [p for p in sys.path if p.rstrip("/").endswith("pipeline")], file=sys.stderr))
"""


@pytest.mark.parametrize("stage", ["align", "distill", "evaluate", "report", "plan", "status"])
def test_both_forms_show_their_help(stage, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    for form in ([f"pipeline/{stage}.py"], ["-m", f"pipeline.{stage}"]):
        done = launch.python(*form, "--help", PYTHONPATH=str(tmp_path), COLUMNS="200")
        assert done.stdout.startswith("usage: ") and "Peak learning rate." in done.stdout
        for field in ("--teachers.length", "--data.sources.holdout", "--data.validation.rows", "--version"):
            assert f"\n  {field}" in done.stdout
        assert done.stderr == "HIDING []\n"


@pytest.mark.parametrize("stage", ["chat", "evaluate"])
def test_every_stage_says_its_version(stage):
    project = tomllib.loads((launch.ROOT / "pyproject.toml").read_text())["project"]
    done = launch.python(f"pipeline/{stage}.py", "--version")
    assert done.stdout == f"{project['name']} {project['version']}\n"


def test_a_script_that_fails_says_so_in_one_line():
    done = launch.python("pipeline/distill.py", "--optim.lr", "0", code=2)
    assert (done.stdout, done.stderr) == ("", "distill: optim.lr is 0.0, must be above 0\n")


LEAVES = """
import atexit, threading, time
from pipeline.core.errors import leave
class Late:
    def __del__(self):
        print("the interpreter's own end")
late = Late()
atexit.register(print, "atexit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("work")
leave(75)
"""


def test_a_rank_leaves_without_the_interpreter_s_own_end():
    assert launch.python("-c", LEAVES, code=75).stdout.split("\n") == ["work", "thread", "atexit", ""]

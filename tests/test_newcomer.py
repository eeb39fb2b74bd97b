"""The first hour of a newcomer, as a script: own data and model, every stage, in a path with spaces and letters beyond ASCII."""

from __future__ import annotations

import pytest

from tests import launch

pytestmark = [pytest.mark.slow, pytest.mark.launch]


def test_the_newcomer_s_script(tmp_path):
    done = launch.run("bash", "tests/newcomer.sh", tmp_path, MASTER_PORT=str(launch.free_port()))
    assert done.stdout.splitlines()[-1].startswith("done in ")

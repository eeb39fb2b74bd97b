"""Fixtures of several test files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests import launch

settings.register_profile("here", deadline=None)  # a busy machine is no failure
settings.load_profile("here")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files that git knows (or would), and nothing that a run has left behind."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = launch.run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split("\n")
    for name in filter(None, listed):
        if (launch.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(launch.ROOT / name, folder / name)
    return folder

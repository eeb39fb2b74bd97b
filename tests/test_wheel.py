"""The package that `pip install .` makes, used from another folder."""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import launch

pytestmark = pytest.mark.slow
SCRIPTS = tomllib.loads((launch.ROOT / "pyproject.toml").read_text())["project"]["scripts"]

# Finds what the product ships, from the installed package.
FIND = """
import pipeline, sys
from jinja2 import PackageLoader
from pipeline.capacity.inputs import PUBLISHED
from pipeline.config.cli import RECIPES, parse, parser
from pipeline.evaluation.benchmarks import TASKS
import pipeline.evaluation.code.sandbox  # reads its guest
from lm_eval.tasks import TaskManager

assert pipeline.__file__.startswith(sys.prefix), pipeline.__file__
for recipe in RECIPES.glob("*.yaml"):
    parse(parser(""), ["--recipe", recipe.stem])
    print("recipe", recipe.stem)
known = TaskManager(include_path=str(TASKS)).all_tasks
for task in TASKS.glob("*.yaml"):
    assert task.stem in known, task
    print("task", task.stem)
assert "report.html.jinja" in PackageLoader("pipeline.reporting", ".").list_templates()
print("configs", len(list(PUBLISHED.glob("*/*/config.json"))))
"""


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    """The wheel of what git knows."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, checkout)
    launch.python(*build)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel in it; what the wheel needs comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    launch.python("-m", "venv", "--without-pip", folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site, ours = (prefix / "lib" / version / "site-packages" for prefix in (folder, Path(sys.prefix)))
    launch.python("-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps", wheel)
    (site / "dependencies.pth").write_text(f"{ours}\n")
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel):
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("pipeline/")}
    assert shipped == set(launch.run("git", "ls-files", "pipeline").stdout.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_console_command_starts_from_another_folder(environment, name, tmp_path):
    assert launch.run(environment / "bin" / name, "--help", cwd=tmp_path).stdout.startswith(f"usage: {name}")


def test_recipes_tasks_and_templates_are_found_from_another_folder(environment, tmp_path):
    lines = launch.run(environment / "bin/python", "-c", FIND, cwd=tmp_path).stdout.splitlines()
    for kind, folder in (("recipe", "config/recipes"), ("task", "evaluation/tasks")):
        names = sorted(path.stem for path in (launch.ROOT / "pipeline" / folder).glob("*.yaml"))
        assert sorted(line.split()[1] for line in lines if line.startswith(kind)) == names
    published = list((launch.ROOT / "pipeline/capacity/published").glob("*/*/config.json"))
    assert published and f"configs {len(published)}" in lines

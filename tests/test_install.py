"""What is installed: the pins, and the Makefile's part in it."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import launch

PINS = ("requirements.txt", "tests/requirements.txt", "constraints.txt")
OPTIONAL = {"gguf"}  # `convert --gguf` asks for it by name


def requirements(name: str) -> list[Requirement]:
    """The lines of a requirements file."""
    lines = (line.split("#")[0].strip() for line in (launch.ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def needed(roots: list[Requirement]) -> dict[str, str]:
    """Name -> installed version of all that these bring here, but for torch and what it asks for."""
    versions, todo = {}, list(roots)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name == "torch" or (name in versions and not requirement.extras):
            continue
        distribution = importlib.metadata.distribution(name)
        versions[name] = distribution.version
        for text in distribution.requires or []:
            child = Requirement(text)
            environments = [{"extra": extra} for extra in (*requirement.extras, "")]
            if child.marker is None or any(child.marker.evaluate(e) for e in environments):
                todo.append(child)
    return versions


def test_constraints_pin_everything_that_the_requirements_bring():
    pins = {canonicalize_name(r.name): str(r.specifier) for r in requirements("constraints.txt")}
    versions = needed([r for name in PINS[:2] for r in requirements(name)])
    del versions["setuptools"]  # the Makefile's
    assert {name: pins.get(name) for name in versions} == {name: f"=={v}" for name, v in versions.items()}, "make lock"


def test_requirements_pin_everything_that_is_imported():
    pinned = {canonicalize_name(r.name) for r in requirements("requirements.txt") if str(r.specifier).startswith("==")}
    owners = importlib.metadata.packages_distributions()
    missing = {}
    for path in [*launch.ROOT.glob("pipeline/**/*.py"), *launch.ROOT.glob("demo/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in (
                {m.split(".")[0] for m in modules} - sys.stdlib_module_names - OPTIONAL - {"pipeline", "demo"}
            ):
                if pinned.isdisjoint(map(canonicalize_name, owners.get(module, []))):
                    missing[module] = str(path)
    assert not missing


# stands for python3: makes a .venv whose python is itself, and a pip that talks and may fail
PYTHON = """#!/bin/bash
case "$*" in
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip"*) echo "pip's chatter: $*"; echo "#!$PWD/$0" > "${0%python}deepspeed"; exit "${PIP_FAILS:-0}" ;;
esac
"""


def test_make_installs_inside_a_checkout_whose_path_has_spaces(tmp_path):
    checkout = tmp_path / "my own checkout"
    (checkout / "tests").mkdir(parents=True)
    for name in ("Makefile", *PINS):
        shutil.copy(launch.ROOT / name, checkout / name)
    python = tmp_path / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    make = ("make", "install", f"PYTHON={python}")

    failed = launch.run(*make, cwd=checkout, code=2, PIP_FAILS="1")
    assert "pip's chatter" in failed.stdout and not (checkout / ".venv/.installed").exists()

    done = launch.run(*make, cwd=checkout)
    assert "installing" in done.stdout and "chatter" not in done.stdout + done.stderr
    assert "-c constraints.txt -r requirements.txt" in (checkout / ".venv/install.log").read_text()
    assert (checkout / ".venv/.installed").exists()
    assert (
        checkout / ".venv/bin/deepspeed"
    ).read_text() == "#!/usr/bin/env python\n"  # a path with spaces starts nothing
    assert {path.name for path in tmp_path.iterdir()} == {checkout.name, python.name}
    assert launch.run(*make, cwd=checkout).stdout.strip().endswith("Nothing to be done for 'install'.")


def test_make_help_lists_every_target():
    makefile = (launch.ROOT / "Makefile").read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    listed = [line.split()[0] for line in launch.run("make", "help").stdout.splitlines() if not line.startswith(" ")]
    assert sorted(listed) == sorted(targets)

"""Imports run downwards only: the floors of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests import launch

FLOORS = (
    {"core"},
    {"config", "method"},
    {"data", "distributed"},
    {"models"},
    {"alignment", "decoding"},
    {"evaluation", "training"},
    {"capacity", "conversation", "experiments", "reporting"},
    {path.stem for path in (launch.ROOT / "pipeline").glob("[!_]*.py")},
)
"""From below; the last are the stage scripts, as which every pipeline/*.py counts."""


def imports() -> Iterator[tuple[str, str]]:
    """(module, imported module) of ours, wherever in a file the import stands. Names that type checkers alone see too."""
    for path in sorted((launch.ROOT / "pipeline").rglob("*.py")):
        for module in imported(path):
            if module.split(".")[0] in ("pipeline", "demo", "benchmarks", "tests"):
                yield dotted(path), module


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports; `from package import module` counts as the module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(dotted(path).split(".")[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if is_module(whole) else module


def dotted(path: Path) -> str:
    """pipeline/core/log.py -> pipeline.core.log"""
    return ".".join(path.relative_to(launch.ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(name: str) -> bool:
    """Whether a file or a folder of the repository has this dotted name."""
    path = launch.ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def room(module: str) -> str:
    """pipeline.core.log -> core"""
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    """The number of a room's floor."""
    return next(number for number, names in enumerate(FLOORS) if name in names)


def allowed(module: str, target: str) -> bool:
    """Down, or within the same room; never from below a stage script to one, nor out of the product."""
    if not target.startswith("pipeline"):
        return False
    if not room(target) or (room(module) == room(target) and floor(room(module)) < len(FLOORS) - 1):
        return True
    return floor(room(target)) < floor(room(module))


def test_imports_run_downwards():
    upward = {f"{module} -> {target}" for module, target in imports() if not allowed(module, target)}
    assert upward == set()


def test_method_imports_torch_and_nothing_of_ours_and_core_nothing_of_ours():
    outside = {(m, t) for m, t in imports() if room(m) in ("core", "method") and room(t) != room(m)}
    assert outside == set()


def test_what_exports_carry_imports_nothing_of_ours():
    assert {(m, t) for m, t in imports() if m.startswith("pipeline.models.export_files.")} == set()


def test_no_module_imports_itself_through_others():
    graph: dict[str, set[str]] = {}
    for module, target in imports():
        if target != module and not target.startswith(f"{module}."):
            graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_the_page_has_the_same_floors():
    page = (launch.ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.+?) \|", page, re.M)
    assert [set(re.findall(r"`(\w+)`", names)) for _, names in rows] == list(FLOORS)

"""Which version of this program runs."""

from __future__ import annotations

import argparse
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

PACKAGE = "tide-pipeline"


def package_version() -> str:
    """What pyproject.toml says: as pip installed it, or of this checkout; `unknown` for a copy without either."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"


def add_version(p: argparse.ArgumentParser) -> None:
    """``--version``."""
    p.add_argument("--version", action="version", version=f"{PACKAGE} {package_version()}", help="say it, and end")


def plain_parser(doc: str | None) -> argparse.ArgumentParser:
    """Of a command that reads no recipe."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(p)
    return p


def code_version() -> str | None:
    """Commit of this program, with `-dirty` where tracked files differ from it; None outside a git checkout, or without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # a machine without git
        return None
    return done.stdout.strip() or None

"""Which version of this program runs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def code_version() -> str | None:
    """Commit of this program, with `-dirty` where tracked files differ from it; None outside a git checkout, or without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # a machine without git
        return None
    return done.stdout.strip() or None

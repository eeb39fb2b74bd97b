"""Paths in a recipe: this machine's `~` and `$NAME`."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.core.errors import BadInput

PATHS = ("path", "tokenizer", "aligned", "run_dir")


def expand_paths(section: Any) -> None:
    """Puts this machine's `~` and `$NAME` into every path of a recipe, in place. Raises BadInput for a variable that is not
    set."""
    for entry in fields(section):
        value = getattr(section, entry.name)
        for part in value if isinstance(value, list) else [value]:
            if is_dataclass(part):
                expand_paths(part)
        if entry.name in PATHS and isinstance(value, str):
            path = os.path.expanduser(os.path.expandvars(value))
            if path.startswith("$") or "/$" in path:
                raise BadInput(f"{entry.name} {value}: this variable is not set on this machine")
            setattr(section, entry.name, path)

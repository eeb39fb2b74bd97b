"""What a stage says while it works, and which rank says it."""

from __future__ import annotations

import os


def rank() -> int:
    """Rank of this process as its launcher says, 0 without one."""
    return int(os.environ.get("RANK", 0))

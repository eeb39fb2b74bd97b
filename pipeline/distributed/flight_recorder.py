"""torch's flight recorder: the last collectives of a rank, for the question which rank did not come to which.

`python -m torch.distributed.flight_recorder.fr_trace FOLDER` compares the files of all ranks.
"""

from __future__ import annotations

import os
from pathlib import Path

ENTRIES = 2000
"""Collectives that each rank remembers: a few micro-steps of ZeRO-3."""


def record() -> None:
    """Starts recording; to be called before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(ENTRIES))


def dump(folder: Path, rank: int) -> None:
    """Writes this rank's record to `folder/rank_N`."""
    from torch._C._distributed_c10d import _dump_fr_trace  # type: ignore[attr-defined]

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank_{rank}").write_bytes(_dump_fr_trace())

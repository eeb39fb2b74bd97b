"""Vectors computed by the published implementation (PKU-YuanGroup/TIDE da47bac), in tests/data/golden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "golden"


def load(family: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The cases and the tensors of one family."""
    return json.loads((FOLDER / f"{family}.json").read_text()), load_file(FOLDER / f"{family}.safetensors")

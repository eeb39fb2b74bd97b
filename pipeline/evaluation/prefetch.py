"""Fetches the data of tasks: `python pipeline/evaluate.py prefetch` on a machine with a network.

Writes the rows of the recipe's benchmarks to data/benchmarks (or $BENCHMARK_DATA), which evaluation reads; a task of
lm-evaluation-harness's own is loaded once, which fills the Hugging Face cache: evaluate it with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json, write_text
from pipeline.core.log import log
from pipeline.evaluation import human_eval
from pipeline.evaluation.benchmarks import SOURCES, BenchmarkSource, data_file, own_task_file, read


def main(argv: list[str]) -> None:
    """Fetches what the recipe's tasks need and is not there yet."""
    p = parser(__doc__)
    p.add_argument("--tasks", nargs="+", default=[], help="short for --evaluation.tasks")
    recipe, flags = parse(p, argv)
    for name in flags.tasks or recipe.evaluation.tasks:
        if name in SOURCES:
            path = data_file(name)
            if not path.is_file():
                fetch(name)
            log.info(f"{name}: {len(read(name))} rows in {path}")
        elif not own_task_file(name):
            from pipeline.evaluation.lm_eval_tasks import load_tasks

            load_tasks([name])
            log.info(f"{name}: in the Hugging Face cache")


def fetch(name: str) -> None:
    """Writes a benchmark's rows and, beside them, where they are from. Raises BadInput where its source is not reached."""
    source = SOURCES[name]
    rows, revision = (human_eval.problems(), human_eval.PACKAGE) if name == "humaneval" else _from_hub(source)
    if len(rows) != source.rows:
        raise BadInput(
            f"{source.path} has {len(rows)} rows in {source.split}, not {source.rows}: it is not the data of {name}"
        )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    origin = {"source": source.path, "revision": revision, "split": source.split, "rows": len(rows), "sha256": checksum}
    write_json(data_file(name).with_suffix(".source.json"), origin)
    write_text(data_file(name), text)


def _from_hub(source: BenchmarkSource) -> tuple[list[dict[str, Any]], str | None]:
    """All rows of a source at its newest revision, and the revision."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(source.path).sha
        rows = []
        for config in source.configs:
            added = {source.config_column: config} if source.config_column else {}
            part = load_dataset(source.path, config, split=source.split, revision=revision)
            rows += [{**row, **added} for row in part]
    except Exception as error:  # of either library, of the network below them, of an offline switch
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"cannot fetch {source.path} ({type(error).__name__}: {reason}): run prefetch where the hub is reached"
        ) from None
    return rows, revision

"""Made run directories, for tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import yaml

from pipeline.alignment.chunks import align_chunks
from pipeline.alignment.vocabulary import token_bytes
from pipeline.models.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TS = [0.1, 0.3, 0.5, 0.7, 0.9]
SCORES = {"teacher": (0.97, 0.95, 0.99), "undistilled": (0.83, 0.80, 0.86), "distilled": (0.96, 0.94, 0.975)}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def recipe(folder: Path, teachers: list[dict]) -> dict:
    return {
        "name": folder.name,
        "student": {"path": "demo/student", "tokenizer": str(ROOT / "demo/student")},
        "data": {"aligned": str(folder.parent / "aligned"), "validation": {"path": "held_out.jsonl", "rows": 9}},
        "teachers": teachers,
        "objective": {
            "strategy": "tide_shared",
            "temperature": 2.0,
            "tidal": {"axes": "both", "schedule": "cosine", "init": 0.1, "maximum": 0.9},
        },
        "evaluation": {"tasks": ["arithmetic"]},
    }


def write_run(folder: Path, model: str, floor: float, teacher: str | None) -> None:
    """Metrics, status, environment and one evaluation."""
    teachers = [{"name": teacher, "path": "demo/teacher", "tokenizer": str(ROOT / "demo/teacher")}] if teacher else []
    write(folder / "recipe.yaml", yaml.safe_dump(recipe(folder, teachers)))
    lines = []
    for step in range(10, 401, 10):
        entropy = floor + 2.5 * math.exp(-step / 90) + 0.05 * math.sin(step)
        term = {teacher: 0.4 + entropy / 3} if teacher else {}
        loss = entropy + sum(term.values())
        term |= {"lr": 1e-3 * (1 - step / 500), "grad_norm": 0.5, "lambda": step / 400 if teacher else None}
        pace = {
            "memory_gb": 1.5,
            "tokens": 40_000,
            "seconds": 5.0,
            "tokens_per_second": 8000 + 300 * math.sin(step / 7),
        }
        lines.append({"kind": "train", "step": step, "loss": loss, "cross_entropy": entropy, **term, **pace})
        if step % 100 == 0:
            by_t = {str(t): entropy * (0.2 + t) for t in TS}
            lines.append({"kind": "validation", "step": step, "loss": entropy, "by_t": by_t})
    if teacher:
        kl = {step: {teacher: {str(t): t * nats for t in TS}} for step, nats in (("0", 2), ("400", 0.2))}
        write(folder / "distance.json", kl)
    write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    done = {"state": "done", "step": 400, "exit_code": 0, "message": ""}
    write(folder / "status" / "distill.json", done | {"seconds": 200.5})
    write(folder / "status" / "report.json", {"state": "done", "seconds": 1.0})
    environment = {
        "torch": "2.13.0", "device": "Toy CPU", "commit": "0123456789abcdef-dirty", "world_size": 2, "zero_stage": 3,
        "started": ["2026-11-26T08:00:00+00:00", "2026-11-27T08:00:00+00:00"], "steps": 400,
        "expert_parallel_size": {teacher: 2} if teacher else {},
    }  # fmt: skip
    write(folder / "environment.json", environment)
    write_scores(folder, "step-00000400", model)


def write_scores(folder: Path, label: str, model: str) -> None:
    value, low, high = SCORES[model]
    score = {
        "task": "arithmetic", "metric": "exact_match", "value": value, "n": 500, "low": low, "high": high,
        "preset": "demo", "alarms": ["30% of the responses"] if model == "distilled" else [],
    }  # fmt: skip
    write(folder / "evaluation" / label / "arithmetic.json", score)
    samples = [
        {
            "prompt": f"What is {a} plus 5?",
            "response": f"The sum is {a + 5 + a % 3 // 2}.",
            "target": str(a + 5),
            "correct": (right := a % 3 < 2 or (model == "teacher" and a % 2 == 0)),
            "exact_match": float(right),
            "id": a,
            "pieces": ["The", " $um$", " is", f" {a + 5}", "."],
            "filled": [4, 2, 3, 1, 1],
            "tokens": 5,
            "forwards": 4,
            "ended": True,
        }
        for a in range(10, 30)
    ]
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    write(folder / "evaluation" / label / "arithmetic.samples.jsonl", lines)


def write_aligned(folder: Path, text: str) -> None:
    """One aligned row and a manifest."""
    student, teacher = load_tokenizer(ROOT / "demo/student"), load_tokenizer(ROOT / "demo/teacher")
    ids = [tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (student, teacher)]
    spelled = [[token_bytes(tokenizer)[i] for i in row] for tokenizer, row in zip((student, teacher), ids, strict=True)]
    student_chunks, teacher_chunks = align_chunks(*spelled)
    row = {
        "input_ids": ids[0], "maskable": [True] * len(ids[0]), "llada2_input_ids": ids[1],
        "llada2_chunk_ids": list(teacher_chunks), "llada2_student_chunk_ids": list(student_chunks),
    }  # fmt: skip
    table = pa.Table.from_pylist([row])
    folder.mkdir(parents=True)
    with pa.OSFile(str(folder / "shard-00000.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    statistics = {"chunks_per_row": 9.5, "one_to_one_share": 0.78}
    rows = {"train": {"read": 2001, "kept": 2000, "dropped": {"no_assistant_content": 1}}}
    shards = [{"file": "shard-00000.arrow", "split": "train", "rows": 1, "sha256": "0"}]
    manifest = {"rows": rows, "tokens": {"student": 90_000}, "statistics": {"llada2": statistics}, "shards": shards}
    write(folder / "manifest.json", manifest)

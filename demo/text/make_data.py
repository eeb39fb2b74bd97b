"""Real text that every machine has: docstrings and code of the running Python's standard library, and models' tokenizers and configs.

Writes data/text/{train,validation,test}.jsonl, split by file, and a folder for each model (teacher_moe with a SentencePiece
tokenizer; teacher_dense and student share a byte-level BPE): `python -m demo.text.make_data`. Another version of Python gives other rows.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from demo.code.harvest import SKIPPED_FOLDERS
from demo.make_tokenizers import (
    STUDENT_END,
    STUDENT_ROLES,
    STUDENT_TEMPLATE,
    TEACHER_END,
    TEACHER_ROLES,
    TEACHER_TEMPLATE,
    byte_level_bpe,
    fast_sentencepiece,
    save,
    sentencepiece_model,
)
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import read_json, write_json, write_text

DATA = Path("data/text")
LONGEST = 240
"""Characters of a request, and of an answer."""
SHARES = {"test": 0.05, "validation": 0.05}
"""Of the files; the rest is for training."""
TOKENS = 448
TOKENIZERS_READ = 4
"""Every n-th row: SentencePiece takes minutes for all of them."""
# (folder, config that it begins with, what is different)
MODELS: list[tuple[str, str, dict[str, Any]]] = [
    ("student", "demo/student", {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 32}),
    ("teacher_dense", "demo/study/teacher", {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4}),
    (
        "teacher_moe",
        "demo/study/teacher",
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 288,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
]
SHIFTED = {"shifted": True, "initializer_range": 0.02}
"""As in Fast-dLLM v2: made from an autoregressive model, the row of a token still predicts the next."""


def sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Relative path and syntax tree of every file below `root`; tests, installed packages and what does not parse are left out."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            try:
                with tokenize.open(path) as file, warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                    yield relative.as_posix(), ast.parse(file.read())
            except (SyntaxError, UnicodeDecodeError):
                continue


def rows_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(request, answer) of every documented class and function: its head, and its docstring with a function's code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or not (docstring := ast.get_docstring(node)):
            continue
        inside = ", ".join(map(ast.unparse, node.bases)) if isinstance(node, ast.ClassDef) else ast.unparse(node.args)
        head = f"{'class' if isinstance(node, ast.ClassDef) else 'def'} {node.name}({inside}):"
        code = map(ast.unparse, node.body[1:]) if isinstance(node, ast.FunctionDef) else []
        yield head, "\n".join([f'"""{docstring}"""', *code])


def split_of(path: str) -> str:
    """A whole file belongs to one split, whatever else there is."""
    fraction = int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) / 16**8
    if fraction < SHARES["test"]:
        return "test"
    return "validation" if fraction < SHARES["test"] + SHARES["validation"] else "train"


def splits(files: Iterable[tuple[str, ast.Module]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of every split; answers that are too long, empty or seen before are left out."""
    made: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for path, tree in files:
        for request, answer in rows_of(tree):
            if 0 < len(answer) <= LONGEST and len(request) <= LONGEST and answer not in seen:
                seen.add(answer)
                messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
                made[split_of(path)].append({"messages": messages, "path": path})
    return made


def make_models(texts: list[str], folder: Path) -> None:
    """Tokenizers trained on the texts, and configs that fit them."""
    model = sentencepiece_model(texts, TOKENS)
    save(fast_sentencepiece(model), folder / "teacher_moe", TEACHER_ROLES, TEACHER_END, TEACHER_TEMPLATE)
    for name in ("student", "teacher_dense"):
        save(byte_level_bpe(texts, TOKENS), folder / name, STUDENT_ROLES, STUDENT_END, STUDENT_TEMPLATE)
    for name, origin, fields in MODELS:
        special = read_json(folder / name / "tokenizer.json")["added_tokens"]
        ids = {entry["content"]: entry["id"] for entry in special}
        end = TEACHER_END if name == "teacher_moe" else STUDENT_END
        known = {
            "vocab_size": max(ids.values()) + 1,
            "pad_token_id": ids["<|endoftext|>"],
            "mask_token_id": ids["<|mask|>"],
            "eos_token_id": ids[end],
        }
        write_json(folder / name / "config.json", read_json(Path(origin) / "config.json") | fields | SHIFTED | known)


def main() -> None:
    """Writes rows, tokenizers and configs."""
    root = Path(sysconfig.get_path("stdlib"))
    made = splits(sources(root))
    if not made["train"]:
        raise BadInput(f"no docstring below {root}: this Python has no source of its standard library")
    for name, rows in made.items():
        write_text(DATA / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(
            f"{DATA / name}.jsonl: {len(rows)} rows, {sum(len(r['messages'][1]['content']) for r in rows):,} characters"
        )
    read = made["train"][::TOKENIZERS_READ]
    make_models([message["content"] for row in read for message in row["messages"]], DATA)


if __name__ == "__main__":
    sys.exit(exit_code("make_data", main))

"""The field's words, in names and in prose: not those that this project once had of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests import launch

ROOMS = ("pipeline", "demo", "benchmarks")

STANDARD = {
    "blame": "find_nonfinite_rows",
    "drop_later_lines": "truncate_after",
    "facts": "what they are of: settings, stats",
    "found": "what was found",
    "head_rows": "chunked_lm_head",
    "held": "StepMemory, or what is held",
    "misfit": "mismatch",
    "mixture_layers": "moe_layers",
    "observe": "teacher_forward",
    "observed": "teacher_output",
    "own": "whose, and what",
    "place": "path, row, index or key",
    "sanity": "teacher_check",
    "say": "log.info, or send",
    "seal": "add_checksum",
    "step_on_nothing": "init_optimizer_state",
    "studying": "experiments",
    "take_up": "load_state",
    "unwritten": "state",
}
"""A name that says nothing to others -> what it is called."""

DISTRIBUTIVE = re.compile(
    r"\b(?:[GM]B|ms|nats|lines?|rows?|threads?|pictures?|sections?|folders?|jobs?|verdicts?|pass(?:es)?|one"
    r"|(?:teacher|student) forwards?) an? (?:GPU|rank|node|process|step|micro-step|micro-batch|layer|model|teacher|task|setting"
    r"|threshold|difference|stage|program|view)\b"
    r"|\b(?:tokens|seconds|bytes) a (?:GPU|rank|second|step|micro-step)\b"
)
"""`GB a GPU`, which is `GB per GPU`."""


def names(tree: ast.AST) -> Iterator[str]:
    """What a module names: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_names_are_the_fields() -> None:
    for path in sorted(path for room in ROOMS for path in (launch.ROOT / room).rglob("*.py")):
        for name in names(ast.parse(path.read_text())):
            word = name.strip("_").lower()
            assert word not in STANDARD, f"{path}: {name} is {STANDARD[word]}"


def test_per_is_the_word_for_each() -> None:
    pages = [*launch.ROOT.glob("*.md"), *(launch.ROOT / "docs").glob("*.md")]
    for path in [*pages, *(path for room in ROOMS for path in (launch.ROOT / room).rglob("*.py"))]:
        assert not (found := DISTRIBUTIVE.search(path.read_text())), f"{path}: {found[0]}"


def test_the_rule_knows_a_verb_from_a_unit() -> None:
    assert DISTRIBUTIVE.search("peak GB a rank")
    assert DISTRIBUTIVE.search("a line a model")
    assert not DISTRIBUTIVE.search("With GPUs a node runs as many ranks; a step that names a rank")
    assert not DISTRIBUTIVE.search("takes the tokens that a model reads")

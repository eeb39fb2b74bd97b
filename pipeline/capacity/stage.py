"""The stage `plan`: reports of a recipe on several numbers of nodes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from pipeline.capacity.capacity_report import GB, CapacityReport, capacity_report
from pipeline.capacity.compute import Machine
from pipeline.capacity.fake_step import FakeStep
from pipeline.capacity.inputs import read_configs, read_data
from pipeline.capacity.planned_run import plan_run, row_means, shared_vocab
from pipeline.capacity.stored_answers import store_sizes, without_stored_teachers
from pipeline.capacity.zero import read_settings
from pipeline.config.recipe import Recipe, without_idle_teachers
from pipeline.training.engine import read_engine_config


def plan_runs(recipe: Recipe, flags: Namespace) -> tuple[list[CapacityReport], dict[str, float]]:
    """A report for each of `flags.nodes`, and the bytes of each teacher's stored answers.

    flags: of the stage's command line. Raises BadInput for what a run would refuse, and for what is not counted.
    """
    engine = read_engine_config(Path(flags.deepspeed))
    settings = read_settings(engine, flags.deepspeed)
    whole = without_idle_teachers(recipe)
    configs, data = read_configs(whole, flags.config), read_data(whole, flags.rows, flags.mean_tokens)
    stores = store_sizes(whole, data, shared_vocab(whole, configs, data))
    live = without_stored_teachers(whole)
    if len(live.teachers) < len(whole.teachers):  # the others take no forward
        configs = configs[0], {teacher.name: configs[1][teacher.name] for teacher in live.teachers}
        data = read_data(live, flags.rows, flags.mean_tokens)
    runs = [plan_run(live, engine, configs, data, nodes, flags.gpus_per_node, flags.device) for nodes in flags.nodes]
    step = FakeStep(runs[0], configs[0], list(configs[1].values()), flags.expert_imbalance)
    means = row_means(runs[0])
    machine = partial(
        Machine,
        gpus_per_node=flags.gpus_per_node,
        gpu_bytes=flags.gpu_memory * GB,
        headroom=flags.headroom,
        gpu_flops=flags.gpu_tflops * 1e12,
        mfu=flags.mfu,
        seconds_per_operation=flags.launch_us / 1e6,
        network=flags.network * GB,
    )
    reports = [
        capacity_report(run, step, settings, means, machine(nodes))
        for run, nodes in zip(runs, flags.nodes, strict=True)
    ]
    return reports, stores

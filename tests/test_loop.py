"""The loop between steps: when it saves, and where it stops."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from pipeline.config.cli import parse, parser
from pipeline.core.errors import StoppedEarly
from pipeline.training.checkpoint import NotSaved
from pipeline.training.loop import Requests, Trainer

STEPS = 9


class Steps(Trainer):
    """Takes no step, and asks to stop in the middle of one."""

    def micro_batches(self, step):
        return []

    def agree(self, micro_batches, requests: Requests):
        return torch.ones(0), requests

    def train_step(self, step, micro_batches, denominators, metrics):
        self.taken.append(step + 1)
        self.asked = self.asked or step + 1 == self.asks_in


def run(
    asks_in: int, first: int = 0, save=None, every_steps: int = 0, every_minutes: float = 30.0
) -> tuple[list[int], list[int], str | None]:
    """Steps taken, steps saved, and how it says that it stopped; asks_in 0: before the first step."""
    recipe, _ = parse(parser(""), [])
    saving = replace(recipe.checkpoint, every_steps=every_steps, every_minutes=every_minutes)
    recipe = replace(recipe, checkpoint=saving)
    engine = SimpleNamespace(
        get_global_grad_norm=lambda: 0.0, optimizer=SimpleNamespace(param_groups=[{"lr": 0.0}]), module=None
    )
    topology, saved, nothing = SimpleNamespace(device=torch.device("cpu")), [], torch.ones(1)
    steps = Steps(recipe, topology, engine, [], None, None, None, nothing, STEPS, 1, lambda: None)
    steps.taken, steps.asked, steps.asks_in = [], asks_in == 0, asks_in
    loop = {"heartbeat": lambda _: None, "validate": lambda _: None, "save": save or saved.append}
    try:
        steps.run(first, MagicMock(), lambda: steps.asked, **loop)
    except StoppedEarly as stopped:
        return steps.taken, saved, str(stopped)
    return steps.taken, saved, None


@pytest.mark.parametrize("every_steps", [0, 3])
def test_who_asks_in_a_step_waits_for_that_step_alone(every_steps):
    """And what was saved after it anyway is not saved again."""
    taken, saved, says = run(asks_in=3, every_steps=every_steps)
    assert (taken, saved) == ([1, 2, 3], [3]) and says.startswith("stopped as asked at step 3/9: ")


def test_a_start_takes_a_step_at_least():
    assert run(asks_in=0, first=4)[:2] == ([5], [5])


def test_who_asks_in_the_last_step_gets_the_whole_run():
    assert run(asks_in=9) == ([*range(1, 10)], [9], None)


def test_saves_by_the_clock_and_at_a_stop_are_one():
    assert run(asks_in=4, every_steps=2, every_minutes=0)[:2] == ([1, 2, 3, 4], [1, 2, 3, 4])


def test_what_could_not_be_saved_is_saved_at_a_stop():
    tried, saved = [], []

    def once_full(step):
        tried.append(step)
        if len(tried) == 1:
            raise NotSaved("the disk is full")
        saved.append(step)

    taken, _, says = run(asks_in=2, every_steps=2, save=once_full)
    assert (taken, tried, saved) == ([1, 2], [2, 2], [2]) and "at step 2/9" in says


def test_a_stop_that_cannot_be_saved_says_so():
    def full(_step):
        raise NotSaved("the disk is full")

    with pytest.raises(NotSaved, match="the disk is full: make room and run the same command to go on"):
        run(asks_in=3, every_steps=2, save=full)

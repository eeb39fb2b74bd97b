"""The training loop: global batches in, checkpoints and metrics out."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.data import AlignedRows, Batch, BatchBuilder, GlobalBatches, Sample, assign
from pipeline.recipe import Recipe
from pipeline.run_directory import StoppedEarly
from pipeline.training.metrics import Metrics
from pipeline.training.step import counts, learning_rate
from pipeline.training.terms import Term
from pipeline.training.topology import Topology


@dataclass
class Trainer:
    """Everything that the loop needs, chosen once."""

    recipe: Recipe
    topology: Topology
    engine: object
    """The student's DeepSpeed engine around `StudentWithLoss`."""
    teachers: list[tuple[Term, nn.Module]]
    rows: AlignedRows
    batches: GlobalBatches
    builder: BatchBuilder
    weights: Tensor
    """Of the cross-entropy, then of every teacher's term: [1 + teachers]."""
    steps: int
    accumulation: int
    after_step: Callable[[], None]
    """Balances a trained MoE's router; nothing for other students."""

    def run(
        self, first: int, metrics: Metrics, *, validate: Callable[[int], None], save: Callable[[int], None]
    ) -> None:
        """Trains from step `first` to the last. Raises StoppedEarly after a signal, once a checkpoint is written."""
        recipe = self.recipe
        stop, saved_at = StopSignals(), time.monotonic()
        for step, micro_batches in self._prefetched(first):
            due = time.monotonic() - saved_at > 60 * recipe.checkpoint.every_minutes
            stopping, saving = self.train_step(step, micro_batches, metrics, [stop.seen, due])
            done = step + 1
            last = done == self.steps
            if last or done % recipe.logging.every_steps == 0:
                self._log(metrics, done)
            if last or _every(recipe.logging.validate_every, done):
                validate(done)
            if last or stopping or saving or _every(recipe.checkpoint.every_steps, done):
                save(done)
                saved_at = time.monotonic()
            if stopping and not last:
                raise StoppedEarly(
                    f"stopped by a signal at step {done}/{self.steps}: run the same command to go on", done
                )

    def _prefetched(self, first: int) -> Iterator[tuple[int, list[Batch]]]:
        """Steps and their micro-batches, the next step's being made while this one runs."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self.micro_batches, first) if first < self.steps else None
            for step in range(first, self.steps):
                ready = coming.result()
                if step + 1 < self.steps:
                    coming = pool.submit(self.micro_batches, step + 1)
                yield step, ready

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's part of a global batch: `accumulation` micro-batches, some maybe empty."""
        visits = self.batches[step]
        own = [v.row for v in visits]
        costs = self.builder.tokens(self.rows.student_lengths[own], [n[own] for n in self.rows.teacher_lengths])
        groups = assign(costs, self.topology.world_size * self.accumulation)
        mine = groups[self.topology.rank * self.accumulation : (self.topology.rank + 1) * self.accumulation]
        seed = self.recipe.data.seed
        samples = [[Sample(self.rows[v.row], (seed, v.epoch, v.row)) for v in (visits[i] for i in g)] for g in mine]
        return [self.builder(group) for group in samples]

    def train_step(self, step: int, micro_batches: list[Batch], metrics: Metrics, wishes: list[bool]) -> list[bool]:
        """One optimizer step. Returns which `wishes` any rank has: they travel with the counts, in one all-reduce."""
        terms = [term for term, _ in self.teachers]
        own = torch.stack([counts(batch, terms) for batch in micro_batches])
        shared = torch.cat([own.sum(0), torch.tensor(wishes, dtype=torch.float64)]).to(self.topology.device)
        dist.all_reduce(shared)
        totals, agreed = shared[: own.shape[1]], shared[own.shape[1] :]
        parts = self.topology.world_size * self.accumulation
        progress = step / self.steps
        self._set_learning_rate(step)
        for batch, count in zip(micro_batches, own, strict=True):
            denominators = totals if self.recipe.objective.reduction == "global" else count.to(totals) * parts
            batch = batch.to(self.topology.device)
            observed = [term.observe(model, b) for (term, model), b in zip(self.teachers, batch.teachers, strict=True)]
            means = self.engine(batch, observed, progress) / denominators.clamp(min=1)
            # DeepSpeed averages over ranks and micro-batches; our denominators already hold all of them
            self.engine.backward((means * self.weights.to(means)).sum() * parts)
            self.engine.step()
            metrics.add(means.detach(), batch.tokens)
        self.after_step()
        metrics.step_done()
        return [x > 0 for x in agreed.tolist()]

    def _set_learning_rate(self, step: int) -> None:
        optim = self.recipe.optim
        rate = learning_rate(step, self.steps, peak=optim.lr, warmup=optim.warmup, final=optim.final)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def _log(self, metrics: Metrics, done: int) -> None:
        mixes = [term.mix for term, _ in self.teachers if term.mix]
        facts = {
            "grad_norm": float(self.engine.get_global_grad_norm()),
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "lambda": float(mixes[0]((done - 1) / self.steps, torch.zeros(()))) if mixes else None,
        }
        line = metrics.write(done, weights=self.weights.tolist(), **facts)
        if not math.isfinite(line["loss"]):
            raise FloatingPointError(
                f"the loss is {line['loss']} at step {done}: the last complete checkpoint is before it"
            )


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 (the scheduler's warning) set a flag; the loop reads it at a step's boundary."""

    def __init__(self) -> None:
        self.seen = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.seen = True


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0

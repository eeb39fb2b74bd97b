"""The training loop: global batches in, checkpoints and metrics out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config.recipe import Recipe
from pipeline.core.errors import StoppedEarly
from pipeline.core.log import log
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import BatchBuilder, Sample
from pipeline.data.order import GlobalBatches, SampleRef, balance
from pipeline.distributed.device_reads import read
from pipeline.distributed.topology import Topology
from pipeline.training.checkpoint import NotSaved
from pipeline.training.metrics import Metrics
from pipeline.training.step import counts, learning_rate
from pipeline.training.terms import Term
from pipeline.training.transfer import StagedBatch, Transfer

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Requests:
    """What a rank asks of all ranks between two steps; one that asks is enough."""

    stop: bool = False
    save: bool = False


@dataclass
class Trainer:
    """Everything that the loop needs, chosen once."""

    recipe: Recipe
    topology: Topology
    engine: DeepSpeedEngine
    """Around `StudentWithLoss`."""
    teachers: list[tuple[Term, PreTrainedModel | None]]
    rows: AlignedRows
    batches: GlobalBatches
    builder: BatchBuilder
    weights: Tensor
    """Of the cross-entropy, of every teacher's term, and of the student's own losses: [1 + teachers + own losses]."""
    steps: int
    accumulation: int
    after_step: Callable[[], None]
    """Balances a trained MoE's router; nothing for other students."""

    def __post_init__(self) -> None:
        self.transfer = Transfer(self.topology.device)

    @property
    def parts(self) -> int:
        """Micro-batches of a step, over all ranks."""
        return self.topology.world_size * self.accumulation

    def run(
        self,
        first: int,
        metrics: Metrics,
        stopping: Callable[[], bool],
        *,
        heartbeat: Callable[[str], None],
        validate: Callable[[int], None],
        save: Callable[[int], None],
    ) -> None:
        """Trains from step `first` to the last; `heartbeat` is told what comes next.

        Raises StoppedEarly once `stopping` is true on any rank and a checkpoint is written, and NotSaved where the last one cannot be written.
        """
        recipe, saved_at, saved = self.recipe, time.monotonic(), first

        def checkpoint(done: int, *, needed: bool) -> None:
            nonlocal saved_at, saved
            heartbeat(f"saving the checkpoint of step {done}")
            try:
                save(done)
                saved = done
            except NotSaved as error:  # the disk may have room by the next one
                if needed:
                    raise NotSaved(f"{error}: make room and run the same command to go on") from None
                log.warning(f"{error}; the run goes on")
            saved_at = time.monotonic()

        metrics.start()
        for step, micro_batches in self._prefetched(first):
            heartbeat(f"taking step {step + 1}")
            due = time.monotonic() - saved_at > 60 * recipe.checkpoint.every_minutes
            denominators, agreed = self.agree(micro_batches, Requests(stopping(), due))
            if step > first:  # a start takes a step at least
                if (agreed.stop or agreed.save) and saved < step:
                    checkpoint(step, needed=agreed.stop)
                    heartbeat(f"taking step {step + 1}")
                if agreed.stop:
                    raise StoppedEarly(f"stopped as asked at step {step}/{self.steps}: run the same command to go on")
            self.train_step(step, micro_batches, denominators, metrics)
            done = step + 1
            last = done == self.steps
            if last or done % recipe.logging.every_steps == 0:
                self._log(metrics, done)
            if last or _every(recipe.logging.validate_every, done):
                validate(done)
            if last or _every(recipe.checkpoint.every_steps, done):
                checkpoint(done, needed=last)

    def _prefetched(self, first: int) -> Iterator[tuple[int, list[StagedBatch]]]:
        """Steps and their micro-batches, the next step's being made and copied while this one runs."""
        with ThreadPoolExecutor(1) as pool:
            coming = [pool.submit(self.micro_batches, step) for step in range(first, self.steps)[:1]]
            for step in range(first, self.steps):
                ready = coming.pop().result()
                if step + 1 < self.steps:
                    coming.append(pool.submit(self.micro_batches, step + 1))
                yield step, ready

    def micro_batches(self, step: int) -> list[StagedBatch]:
        """This rank's part of a global batch: `accumulation` micro-batches, some maybe empty."""
        return [self.micro_batch(samples) for samples in self.rank_slice(step)]

    def micro_batch(self, samples: Sequence[SampleRef]) -> StagedBatch:
        """These rows with their noise; none is fine."""
        seed = self.recipe.data.seed
        batch = self.builder([Sample(self.rows[s.row], (seed, s.epoch, s.row)) for s in samples])
        return self.transfer.stage(batch)

    def rank_slice(self, step: int) -> list[list[SampleRef]]:
        """This rank's rows of a global batch, by micro-batch."""
        samples = self.batches[step]
        rows = [sample.row for sample in samples]
        costs = self.builder.tokens(self.rows.student_lengths[rows], [n[rows] for n in self.rows.teacher_lengths])
        groups = balance(costs, self.parts)
        mine = groups[self.topology.rank * self.accumulation : (self.topology.rank + 1) * self.accumulation]
        return [[samples[i] for i in group] for group in mine]

    def agree(self, micro_batches: list[StagedBatch], requests: Requests) -> tuple[Tensor, Requests]:
        """What the sums of each micro-batch are divided by, [micro-batches, 1 + teachers + own losses], and what any rank
        requests: both travel in one all-reduce on the CPU, which waits for no device."""
        terms = [term for term, _ in self.teachers]
        own_losses = len(self.weights) - 1 - len(terms)
        local = torch.stack([counts(batch.host, terms, own_losses) for batch in micro_batches])
        shared = torch.cat([local.sum(0), torch.tensor([requests.stop, requests.save], dtype=torch.float64)])
        dist.all_reduce(shared, group=self.topology.control)
        totals, (stop, save) = shared[: local.shape[1]], (shared[local.shape[1] :] > 0).tolist()
        denominators = totals.expand_as(local) if self.recipe.objective.reduction == "global" else local * self.parts
        return denominators.clamp(min=1), Requests(stop, save)

    def train_step(self, step: int, micro_batches: list[StagedBatch], denominators: Tensor, metrics: Metrics) -> None:
        """One optimizer step.

        Raises FloatingPointError, on every rank and with nothing changed, where loss or gradient is not finite.
        """
        denominators, weights = self.transfer.copy(
            torch.stack([denominators, self.weights.double().expand_as(denominators)])
        )
        progress = step / self.steps
        self._set_learning_rate(step)
        for k, batch in enumerate(micro_batches):
            means = self.forward(batch, progress) / denominators[k]
            # DeepSpeed averages over ranks and micro-batches; our denominators already hold all of them
            loss = (means * weights[k]).sum() * self.parts
            # gives a non-finite loss a non-finite gradient, whose norm DeepSpeed checks before it steps
            self.engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
            self.engine.step()
            metrics.add(means.detach(), batch.host.tokens)
        if not self.engine.was_step_applied():
            raise FloatingPointError(self._find_nonfinite_rows(step))
        self.after_step()
        metrics.step_done()

    def forward(self, staged: StagedBatch, progress: float) -> Tensor:
        """Sums of the cross-entropy, of each teacher's term, and of the student's own losses: [1 + teachers + own losses]."""
        batch = staged.on_device()
        pairs = zip(self.teachers, batch.teachers, strict=True)
        teacher_outputs = [term.teacher_forward(model, part) for (term, model), part in pairs]
        return self.engine(batch, teacher_outputs, progress)

    def init_optimizer_state(self) -> None:
        """An optimizer step with a gradient and a rate of zero: changes no weight, but the optimizer has its state after it."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(self.accumulation):
            self.engine.backward(self.forward(self.micro_batch([]), 0.0).sum())
            self.engine.step()

    @torch.no_grad()
    def _find_nonfinite_rows(self, step: int) -> str:
        """Names the rows of a global batch whose loss is not finite, each taken alone. Collective."""
        samples = [sample for micro_batch in self.rank_slice(step) for sample in micro_batch]
        nonfinite = []
        for i in range(max(self.topology.gather_objects(len(samples)))):  # as many forwards on every rank
            if not self.forward(self.micro_batch(samples[i : i + 1]), step / self.steps).isfinite().all():
                nonfinite.append(self.rows.origin(samples[i].row))
        rows = [row for part in self.topology.gather_objects(nonfinite) for row in part]
        named = ", ".join(rows[:20]) + (f" and {len(rows) - 20} more" if len(rows) > 20 else "")
        what = (
            f"the loss of {named} is not finite" if rows else "the gradient is not finite, though every row's loss is"
        )
        return f"{what} at step {step + 1}: no step was taken, checkpoints are as they were"

    def _set_learning_rate(self, step: int) -> None:
        optim = self.recipe.optim
        rate = learning_rate(step, self.steps, peak=optim.lr, warmup=optim.warmup, final=optim.final)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def _log(self, metrics: Metrics, done: int) -> None:
        mixes = [term.mix for term, _ in self.teachers if term.mix]
        values = {
            "grad_norm": read(torch.as_tensor(self.engine.get_global_grad_norm()).view(1))[0],
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            "lambda": float(mixes[0]((done - 1) / self.steps, torch.zeros(()))) if mixes else None,
        }
        metrics.write(done, weights=self.weights.tolist(), **values)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0

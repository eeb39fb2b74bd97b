"""metrics.jsonl and the progress line on the terminal: sums stay on the device and are reduced once per logging line."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.core.errors import BadInput
from pipeline.core.files import write_text
from pipeline.core.log import log
from pipeline.core.run_directory import read_metrics
from pipeline.core.terminal import by_timestep, span
from pipeline.distributed.device_reads import read

_SHORT = {"cross_entropy": "CE"}


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of tensors on a GPU, else of everything in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Metrics:
    """Collects the sums of each loss term over steps; `write` reduces them over the ranks (collective) and logs a line."""

    def __init__(
        self,
        path: Path,
        names: list[str],
        *,
        first: int,
        steps: int,
        device: torch.device,
        monitor: Callable[[dict[str, Any]], None] = lambda record: None,
    ):
        """`monitor` gets every line of the file, too."""
        self.path, self.names, self.first, self.steps, self.device = path, names, first, steps, device
        self._monitor = monitor
        self._clear()
        self.start()

    def start(self) -> None:
        """Training begins now: what came before, as the teachers' probe, is not in the pace."""
        self._started = self._since = time.perf_counter()

    def _clear(self) -> None:
        self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self._tokens, self._count = 0, 0

    def add(self, means: Tensor, tokens: int) -> None:
        """One micro-batch: this rank's share of each term's mean ([terms], no host synchronisation), and its tokens."""
        self._sums += means
        self._tokens += tokens

    def step_done(self) -> None:
        """An optimizer step is complete."""
        self._count += 1

    def state(self) -> Tensor:
        """What a checkpoint must keep of this rank: sums and tokens since the last line, and their steps, float64 [terms + 2]."""
        return torch.cat([self._sums.cpu(), torch.tensor([self._tokens, self._count], dtype=torch.float64)])

    def load_state(self, states: Sequence[Tensor]) -> None:
        """Goes on from every rank's `state`. If the number of ranks has changed, rank 0 takes the sum."""
        rank, stacked = dist.get_rank(), torch.stack(list(states))
        if len(stacked) == dist.get_world_size():
            state = stacked[rank]
        else:
            state = stacked.sum(0) if rank == 0 else torch.zeros_like(stacked[0])
        self._sums, self._tokens = state[:-2].to(self.device), int(state[-2])
        self._count = int(stacked[0, -1])

    def truncate_after(self, step: int) -> None:
        """Drops what a killed run wrote past its last checkpoint (rank 0): those steps are taken again. To be called after
        `load_state`, which knows the last line that must be there."""
        if dist.get_rank() == 0:
            lines = [line for line in read_metrics(self.path.parent) if line["step"] <= step]
            written = max((line["step"] for line in lines if line["kind"] == "train"), default=0)
            if written < step - self._count:
                log.warning(f"{self.path}: metrics after step {written}, up to step {step - self._count}, are lost")
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, step: int, *, weights: list[float], **values: Any) -> dict[str, Any]:
        """Averages since the last line, over all ranks: appends them to metrics.jsonl and prints them (rank 0)."""
        reduced = torch.cat([self._sums, torch.tensor([self._tokens], dtype=torch.float64, device=self.device)])
        dist.all_reduce(reduced)
        peak = torch.tensor([peak_memory(self.device)], dtype=torch.float64, device=self.device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        *terms, tokens, memory = read(torch.cat([reduced, peak]))
        means = [x / max(1, self._count) for x in terms]
        seconds = time.perf_counter() - self._since
        line = {
            "kind": "train",
            "step": step,
            "loss": sum(w * m for w, m in zip(weights, means, strict=True)),
            **dict(zip(self.names, means, strict=True)),
            **values,
            "tokens": int(tokens),
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "memory_gb": round(memory / 1e9, 3),
        }
        self.append(line)
        left = (time.perf_counter() - self._started) / (step - self.first) * (self.steps - step)
        losses = "  ".join(f"{_SHORT.get(name, name)} {line[name]:.3f}" for name in self.names)
        pace = f"{seconds / max(1, self._count):.2f} s/step  {span(left)} left"
        log.info(f"step {step:{len(str(self.steps))}}/{self.steps}  loss {line['loss']:.3f}  {losses}  {pace}")
        self._clear()
        self._since = time.perf_counter()
        return line

    def validation(self, step: int, by_t: dict[str, float]) -> None:
        """A validation line: held-out loss at each timestep, and their mean."""
        loss = sum(by_t.values()) / len(by_t)
        self.append({"kind": "validation", "step": step, "loss": loss, "by_t": by_t})
        log.info(f"validation, step {step}: {loss:.4f}  {by_timestep(by_t, '.3f')}")

    def append(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl (rank 0)."""
        if dist.get_rank() == 0:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                raise BadInput(
                    f"cannot write {self.path} ({error.strerror}): make room and run the same command to go on"
                ) from None
            self._monitor(record)

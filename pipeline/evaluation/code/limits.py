"""What a program may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of each program, and of the judge."""

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    """A program that sleeps; on a busy machine far more than the processor time of an honest one."""
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    """Of one file, and of what it prints."""
    scratch_bytes: int = 1 << 24
    """Of all its files together."""
    files: int = 1024
    """Files and folders; empty ones take memory too."""
    open_files: int = 32

    def rlimits(self) -> dict[str, tuple[int, int]]:
        """Soft and hard limits by name. One process of one thread: what may not fork needs no count."""
        same = {"AS": self.memory_bytes, "FSIZE": self.file_bytes, "NOFILE": self.open_files, "NPROC": 0, "CORE": 0}
        cpu = (self.cpu_seconds, self.cpu_seconds + 1)  # SIGXCPU, which tells, then SIGKILL
        return {"CPU": cpu} | {name: (value, value) for name, value in same.items()}

"""Models: families, strict loading, expert parallelism, export."""

from pipeline.models.loading import load_student, load_teacher

__all__ = ["load_student", "load_teacher"]

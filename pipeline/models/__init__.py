"""Models: LLaDA2-MoE, loading of teachers and students, expert parallelism, export."""

from pipeline.models.card import add_scores
from pipeline.models.expert_parallel import resolve_expert_parallel_size
from pipeline.models.export import export
from pipeline.models.loading import load_student, load_teacher, load_tokenizer, read_config

__all__ = [
    "add_scores",
    "export",
    "load_student",
    "load_teacher",
    "load_tokenizer",
    "read_config",
    "resolve_expert_parallel_size",
]

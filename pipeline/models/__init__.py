"""Models: families, strict loading, expert parallelism, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.models.loading import load_student, load_teacher

__all__ = ["load_student", "load_teacher"]


def __getattr__(name: str) -> Any:
    """The two loaders, when they are asked for: they bring torch, which tokenizers do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.models import loading

    return getattr(loading, name)

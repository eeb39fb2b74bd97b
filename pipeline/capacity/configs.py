"""The models' configurations: given, local, published with this project, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedConfig

from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.models.loading import read_config

PUBLISHED = Path(__file__).parent / "published"


def read_configs(recipe: Recipe, given: Sequence[str]) -> tuple[PreTrainedConfig, dict[str, PreTrainedConfig]]:
    """The student's and every teacher's. `given`: NAME=FILE, NAME being `student` or a teacher's name.

    Raises BadInput for a model without a config anywhere, and for a name that the recipe does not have.
    """
    paths = {"student": recipe.student.path, **{teacher.name: teacher.path for teacher in recipe.teachers}}
    places = _given(given, paths)
    found = {name: _read(name, path, places) for name, path in paths.items()}
    return found.pop("student"), found


def _given(given: Sequence[str], paths: Mapping[str, str]) -> dict[str, str]:
    places = dict(text.partition("=")[::2] for text in given)
    for name, place in places.items():
        if name not in paths or not Path(place).exists():
            raise BadInput(
                f"--config {name}={place}: give NAME=FILE with a name of {', '.join(paths)} and its config.json"
            )
    return places


def _read(name: str, path: str, places: Mapping[str, str]) -> PreTrainedConfig:
    if name in places:
        return read_config(places[name])
    if not Path(path).is_dir() and (PUBLISHED / path).is_dir():
        return read_config(str(PUBLISHED / path))
    try:
        return read_config(path)
    except BadInput as error:
        raise BadInput(f"{error}: give it with --config {name}=FILE") from None

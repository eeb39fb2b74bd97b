"""A recipe's file, before anybody looks at its fields: YAML that says each thing once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_ENTRIES = 100_000
"""With every alias written out; a recipe has some hundred."""


def read_recipe_file(path: Path) -> Any:
    """What the file holds. Raises YAMLError, also for a key that stands twice and for aliases that grow."""
    with path.open(encoding="utf-8-sig") as file:
        if _entries(yaml.compose(file, yaml.SafeLoader), {}) > MOST_ENTRIES:
            raise yaml.YAMLError(f"aliases (`*name`) stand for more than {MOST_ENTRIES:,} entries")
        file.seek(0)
        return yaml.load(file, _EachKeyOnce)


class _EachKeyOnce(yaml.SafeLoader):
    """Of two values for one key PyYAML takes the second, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _entries(node: Any, counted: dict[int, int]) -> int:
    """Of a node with every alias written out; `counted` has those of nodes by identity."""
    if id(node) not in counted:
        counted[id(node)] = MOST_ENTRIES + 1  # of a node within itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        counted[id(node)] = 1 + sum(_entries(part, counted) for part in parts)
    return counted[id(node)]

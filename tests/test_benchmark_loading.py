"""The loading benchmark: its arithmetic, and (slow) that loading keeps to it."""

from __future__ import annotations

import json

import pytest

from benchmarks.loading import expected_shapes, in_shards, predicted, size_of
from tests import launch


def test_arithmetic():
    shapes = expected_shapes()
    whole = sum(size_of(name, shape) for name, shape in shapes.items())
    experts = sum(size_of(name, shape) for name, shape in shapes.items() if ".experts." in name)
    assert whole == predicted(1) > 2e9 and experts > 0.9 * whole
    assert predicted(4) == whole - experts * 3 // 4
    parts = list(in_shards(shapes, 2**29))
    assert [name for part in parts for name in part] == list(shapes) and len(parts) == 5
    assert all(sum(size_of(name, shapes[name]) for name in part) <= 2**29 for part in parts)


@pytest.mark.launch
@pytest.mark.slow
def test_two_ranks_read_and_hold_what_arithmetic_says():
    done = launch.python("benchmarks/loading.py", "--ranks", 2, "--sizes", 2, timeout=900)
    assert len(json.loads(done.stdout.splitlines()[-1])["loads"]) == 2

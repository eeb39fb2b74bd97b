"""Pictures and numbers of the report."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from pipeline.evaluation.compare import Comparison
from pipeline.evaluation.results import Score
from pipeline.reporting import chunk_view
from pipeline.reporting.figures import smooth
from pipeline.reporting.headline import points
from pipeline.reporting.page import number
from pipeline.reporting.picture import SIZE, SPOTS, Spot, picture, spots


def test_differences_of_shares_are_points():
    pair = Comparison("t", "m", "a", "b", 300, 0.5, 0.64, 0.14, 0.091, 0.187, "exact McNemar", 0.001, 0.002, [])
    assert points(pair) == "+14.0 points, 95% interval +9.1 to +18.7"
    assert points(replace(pair, value_a=-1.0), "a") == "+0.140 against a, 95% interval +0.091 to +0.187"


def test_points_of_a_line_say_their_values_and_ink_is_the_pages():
    """Values are written out in full; coordinates are not."""
    drawn = picture("a <b>", lambda axes: [*axes.plot([0, 1], [0, 0.123456]), Spot(1, 0.123456, "0.123456 & more")][1:])
    assert 'aria-label="a &lt;b&gt;"' in drawn and "<title>0.123456 &amp; more</title>" in drawn
    assert "currentColor" in drawn and not re.search(r'[" ]\d+\.\d{3,}', drawn)
    circle = re.search(r'class="spot" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert circle, "inside the axes"
    right, on_top = float(circle[1]) > 0.9 * 72 * SIZE[0], float(circle[2]) < 0.15 * 72 * SIZE[1]
    assert right and on_top, "the last point"
    assert len(spots(range(10_000), range(10_000), "")) == SPOTS


def test_chunks_are_drawn_with_visible_bytes():
    table = [b"in", b" all", b"\n", b"\xf0\x9f", b"", b"\x98\x80"]
    assert chunk_view.by_chunk([0, 1, 2, 3], [0, 0, -1, 1], table) == {0: ["in", "␣all"], 1: ["\\xf0\\x9f"]}
    drawn = chunk_view.pair(chunk_view.by_chunk([1, 2], [0, 1], table), chunk_view.by_chunk([1, 2], [0, 1], table))
    assert drawn == [chunk_view.Chunk(["␣all"], ["␣all"]), chunk_view.Chunk(["⏎"], ["⏎"])]


def test_small_helpers():
    bounds = [Score("t", "m", 0.2, 9, low, high).bounds for low, high in ((0.1, 0.25), (None, None))]
    assert bounds == ["0.100 to 0.250", ""]
    assert [number(x) for x in (12345, 0.123456, 12345.6, "a", True)] == ["12,345", "0.1235", "12,346", "a", "True"]
    assert smooth([1.0, 2.0]).tolist() == [1.0, 2.0]
    flat = smooth([0.0, 2.0] * 100)
    assert abs(flat[50:150] - 1).max() < 0.2


def test_a_long_curve_is_smoothed_in_one_pass():
    started = time.process_time()
    smooth([0.0, 2.0] * 100_000)
    assert time.process_time() - started < 2  # a window a point took minutes

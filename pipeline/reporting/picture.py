"""One picture of the report as inline SVG: its ink follows the page's text colour, its points say their values."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SIZE = (5.3, 2.9)  # inches: two side by side on a desk, one on a phone, drawn at about this size on both
SPOTS = 60  # of one line that say their values
INK = "#010203"  # stands for the page's text colour, which differs between light and dark
PLAIN = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
STYLE: dict[Any, Any] = PLAIN | {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "grid.color": "#808080",
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
}
SHORTER = (
    (r"<metadata>.*?</metadata>|<!--.*?-->", ""),
    (r'\s+xmlns(:\w+)?="[^"]*"| id="\w+_\d+"', ""),  # ids that nothing refers to: of matplotlib's groups
    (r"\s+", " "),
    (r"> <", "><"),
)


@dataclass(frozen=True)
class Spot:
    """A point in data coordinates, and what is shown while the pointer is on it."""

    x: float
    y: float
    says: str


def spots(xs: Sequence[float], ys: Sequence[float], says: str, **names: object) -> list[Spot]:
    """At most SPOTS points of a line, evenly spread; `says` is formatted with x, y and the names."""
    if not len(xs):
        return []
    chosen = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), SPOTS)).round().astype(int))
    return [Spot(xs[i], ys[i], says.format(x=xs[i], y=ys[i], **names)) for i in chosen]


def picture(alt: str, plot: Callable[[Axes], Iterable[Spot]], size: tuple[float, float] = SIZE) -> Markup:
    """What `plot` puts on the axes, with the spots that it returns; `alt` describes it for readers who cannot see it.

    No metadata, no addresses of namespaces, ids of its own.
    """
    name = hashlib.sha256(alt.encode()).hexdigest()[:8]
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name, "svg.id": f"picture-{name}"}):
        figure = Figure(figsize=size, dpi=72, layout="constrained")  # SVG's unit is a point
        axes = figure.subplots()
        points = list(plot(axes))
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # `savefig` would lay it out twice
    markup = text.getvalue()
    markup = markup[markup.index("<svg") :].replace(INK, "currentColor")
    for pattern, instead in SHORTER:
        markup = re.sub(pattern, instead, markup, flags=re.DOTALL)
    # coordinates, not what is written between the tags
    markup = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), markup)
    wide = f' class="wide" style="width: {size[0]}in"' if size[0] > SIZE[0] else ""
    markup = markup.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"{wide}', 1)
    return Markup(markup.replace("</svg>", f"{_circles(axes, points, 72 * size[1])}</svg>"))


def _circles(axes: Axes, points: Sequence[Spot], height: float) -> str:
    """Invisible until the pointer is on them."""
    placed = ((axes.transData.transform((spot.x, spot.y)), spot.says) for spot in points)
    inside = axes.bbox.padded(3)
    return "".join(
        f'<circle class="spot" cx="{x:.1f}" cy="{height - y:.1f}" r="5"><title>{escape(says)}</title></circle>'
        for (x, y), says in placed
        if inside.contains(x, y)
    )

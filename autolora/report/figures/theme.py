"""The theme of all figures; its colours are variables of the pages' style sheet, so that they follow light and dark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable

import plotly.graph_objects as go

from autolora.report.templating import text_of
from autolora.scoring.metrics import METRICS

HEIGHT = 250  # pixels
MARGIN = {"l": 28, "r": 76, "t": 24, "b": 42}  # pixels; names stand at the right ends of lines
TERM_NAMES = {"score": "score"} | {metric.name: metric.label for metric in METRICS if metric.in_report}
TERM_COLOURS = {
    "score": "var(--score)",
    "fidelity": "var(--fidelity)",
    "editability": "var(--editability)",
    "bleed_class": "var(--bleed)",
}
_TITLE = {"font": {"size": 12}, "standoff": 8}
_AXIS = {
    "gridcolor": "var(--line)",
    "zerolinecolor": "var(--soft)",
    "zerolinewidth": 1,
    "fixedrange": True,  # so that a finger on a figure scrolls the page
    "automargin": True,
}
THEME = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--soft)", "size": 11},
        "margin": MARGIN,
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "hovermode": "closest",
        "dragmode": False,
        "showlegend": False,
        "xaxis": _AXIS | {"title": _TITLE, "showgrid": False, "zeroline": False},
        "yaxis": _AXIS | {"title": _TITLE},
    }
)


def new_figure(title: str, x: str = "", y: str = "", height: int = HEIGHT) -> go.Figure:
    """An empty figure with the theme.

    Args:
        title: what the figure shows, in words; a page reads it out instead of the figure.
        x: the title of the horizontal axis.
        y: the title of the vertical axis.
        height: in pixels.
    """
    figure = go.Figure(layout={"template": THEME, "title": {"text": title}, "height": height})
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure


def value_range(values: Iterable[float]) -> tuple[float, float]:
    """The ends of an axis for scores: at least 0 to 1, at most -0.5 to 1.5, in quarters; NaN is ignored."""
    finite = [value for value in values if math.isfinite(value)]
    low = max(-0.5, math.floor(4 * min([0.0, *finite])) / 4)
    high = min(1.5, math.ceil(4 * max([1.0, *finite])) / 4)
    return low, high


def with_light_colours(figure: go.Figure) -> go.Figure:
    """A copy with the style sheet's colours of the light page, for pages without that style sheet."""
    light = text_of("style.css").partition("@media")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w+|rgba\([^)]*\))", light))
    text = re.sub(r"var\(--([\w-]+)\)", lambda match: colours[match[1]], figure.to_json())
    return go.Figure(json.loads(text))

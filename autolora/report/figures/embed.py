"""Figures as HTML: their data as JSON, which the pages' script draws, and Plotly itself, packed, once per page."""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from autolora.report.figures.theme import THEME
from autolora.report.templating import text_of

NOTE = "This figure needs JavaScript and a browser from 2023 or later."


def embed(figure: go.Figure, name: str = "") -> Markup:
    """A figure that the page's script draws when it comes near the window; its title is read out instead of it.

    Args:
        figure: with the theme of all figures, which is not repeated in its data.
        name: the `id` of the element.
    """
    content = json.loads(figure.to_json())
    title = content["layout"].pop("title")["text"]
    del content["layout"]["template"]
    identity = Markup(' id="{}"').format(name) if name else Markup("")
    return Markup(
        '<div class="plot"{} role="img" aria-label="{}" style="--height: {}px"><p class="hint">{}</p>'
        '<script type="application/json">{}</script></div>'
    ).format(identity, title, figure.layout.height, NOTE, script_json(content))


def script_json(content: object) -> Markup:
    """JSON for a script element: it holds no `<`, so nothing in it can end the element."""
    return Markup(json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


@cache  # packing takes half a second, and the page of a running study is written often
def drawing_parts() -> dict[str, str]:
    """What a page needs once to draw its figures: Plotly's script, the theme and the script that draws.

    Plotly's script is packed by gzip and written as base64, which takes 40% of its size; browsers unpack it themselves.
    """
    packed = gzip.compress(get_plotlyjs().encode(), 9, mtime=0)
    plotly = base64.b64encode(packed).decode()
    return {"plotly": plotly, "theme": script_json(THEME.to_plotly_json()), "script": text_of("figures.js")}

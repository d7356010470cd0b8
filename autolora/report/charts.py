"""Small SVG charts, drawn by hand: they need no script, follow the page's colours and scale with the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from autolora.report.formatting import format_estimate
from autolora.report.formatting import number as value_in_words
from autolora.report.schema import CurvePoint, Effect, TrialRow
from autolora.scoring.intervals import Estimate

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 34, 74, 22, 34  # room for axis labels and for the names at the lines' ends
SERIES: dict[str, str] = {
    "score": "score",
    "fidelity": "fidelity",
    "editability": "editability",
    "bleed_class": "bleed",
}
LABEL_GAP = 12.0  # pixels between the names at the lines' ends


@dataclass(frozen=True)
class BucketSize:
    """Where data coordinates lie in the picture."""

    x_most: float
    y_least: float
    y_most: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_most

    def y(self, value: float) -> float:
        """Pixels from the top; values outside stay at the edge."""
        held = min(max(value, self.y_least), self.y_most)
        share = (held - self.y_least) / (self.y_most - self.y_least)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def frame_for(curves: Iterable[Sequence[CurvePoint]], names: Iterable[str] = tuple(SERIES)) -> BucketSize:
    """A frame that holds some curves: at least 0 to 1, at most -0.5 to 1.5, in quarters."""
    points = [point for curve in curves for point in curve]
    chosen = tuple(names)
    values = [v for p in points for n in chosen if math.isfinite(v := float(getattr(p, n)))]
    least = max(-0.5, math.floor(4 * min([0.0, *values])) / 4)
    most = min(1.5, math.ceil(4 * max([1.0, *values])) / 4)
    return BucketSize(max([1, *(point.at for point in points)]), least, most)


def learning_curve(trial: TrialRow, max_bleed: float | None = None) -> Markup:
    """Score, fidelity, editability and bleed of a trial by images shown; best and overcooked points marked."""
    frame = frame_for([trial.curve])
    parts = [_overcooked(frame, trial.overcooked_step), _axes(frame)]
    if max_bleed is not None and frame.y_least <= max_bleed <= frame.y_most:
        y = frame.y(max_bleed)
        parts.append(_tag("line", "limit", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
    parts += [_band(frame, trial.curve, name) for name in SERIES]
    parts += [_line(frame, trial.curve, name, f"series {name}") for name in SERIES]
    parts += [_dots(frame, trial.curve, name) for name in SERIES]
    best = next((point for point in trial.curve if point.at == trial.best_step), None)
    if best is not None:
        parts.append(_best(frame, best))
    parts.append(_end_labels(frame, trial.curve))
    words = f"Learning curve of trial {trial.number}, {trial.recipe}"
    if trial.overcooked_step is not None:
        words += f"; overcooked from step {trial.overcooked_step}"
    return _svg(words, parts)


def weight_sweep(sweep: Sequence[CurvePoint], weight: float | None, max_bleed: float | None = None) -> Markup:
    """The terms of one LoRA by its weight; the recommended one marked."""
    frame = frame_for([sweep])
    parts = [_axes(frame, "weight")]
    if max_bleed is not None and frame.y_least <= max_bleed <= frame.y_most:
        y = frame.y(max_bleed)
        parts.append(_tag("line", "limit", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
    if weight is not None:
        x = frame.x(weight)
        parts.append(_tag("line", "chosen-line", x1=x, x2=x, y1=TOP - 4, y2=HEIGHT - BOTTOM))
        parts.append(_text(x, TOP - 8, f"recommended {weight:g}", "chosen-name", "middle"))
    parts += [_band(frame, sweep, name) for name in SERIES]
    for name in SERIES:
        parts += [_line(frame, sweep, name, f"series {name}"), _dots(frame, sweep, name, "weight")]
    parts.append(_end_labels(frame, sweep))
    return _svg("Score, fidelity, editability and bleed by LoRA weight", parts)


def overview(trials: Sequence[TrialRow], best: int | None, baselines: Iterable[int]) -> Markup:
    """The score of every trial by images shown, the best and the baselines in front."""
    frame = frame_for([trial.curve for trial in trials], ["score"])
    marked = set(baselines)
    ranks = {trial.number: 2 if trial.number == best else int(trial.number in marked) for trial in trials}
    parts = [_axes(frame)]
    ends = []
    for trial in sorted(trials, key=lambda trial: ranks[trial.number]):
        if not trial.curve:
            continue
        kind = ("trial", "trial baseline", "trial chosen")[ranks[trial.number]]
        title = f"trial {trial.number}, {trial.recipe}"
        parts.append(_line(frame, trial.curve, "score", kind, title))
        if ranks[trial.number]:
            last = trial.curve[-1]
            word = "best" if trial.number == best else "baseline"
            ends.append((frame.x(last.at), frame.y(last.score), f"#{trial.number} {word}", kind))
            marks = [point for point in trial.curve if point.at == trial.best_step]
            parts += [_tag("circle", f"{kind} peak", cx=frame.x(p.at), cy=frame.y(p.score), r=4) for p in marks]
    parts.append(_labels(ends))
    return _svg("Score of every trial by images shown", parts)


def schedules(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Markup:
    """How each recipe's learning rate moves, by optimizer steps: a factor from 0 to 1 at each."""
    frame = BucketSize(max(curve[-1][0] for curve in curves.values()), 0.0, 1.0)
    parts, ends = [_axes(frame, "optimizer steps")], []
    for place, (name, curve) in enumerate(curves.items()):
        kind = f"series {tuple(SERIES)[place % len(SERIES)]}"
        parts.append(_polyline(frame, curve, kind, name))
        ends.append((frame.x(curve[-1][0]), frame.y(curve[-1][1]), name, kind))
    parts.append(_labels(ends))
    return _svg("Learning rate by optimizer steps", parts)


def interval(estimate: Estimate, name: str, end: float | None = None) -> Markup:
    """A value and its 95% interval on a scale from 0 to 1; `name` picks the colour, `end` is where training ended."""
    width, height, least, most = 120, 14, 0.0, 1.0

    def x(value: float) -> float:
        return 4 + (width - 8) * (min(max(value, least), most) - least) / (most - least)

    middle = height / 2
    parts = [
        _tag("line", "rail", x1=4, x2=width - 4, y1=middle, y2=middle),
        _tag("line", f"whisker {name}", x1=x(estimate.low), x2=x(estimate.high), y1=middle, y2=middle),
        _tag("circle", f"dot {name}", cx=x(estimate.value), cy=middle, r=4),
    ]
    words = format_estimate(estimate)
    if end is not None:
        parts.insert(1, _tag("line", f"moved {name}", x1=x(estimate.value), x2=x(end), y1=middle, y2=middle))
        parts.append(_tag("circle", f"hollow {name}", cx=x(end), cy=middle, r=3.6))
        words += f", {end:.2f} at the end of training"
    return _svg(words, parts, width, height, "interval")


def effect(found: Effect) -> Markup:
    """Every trial's score with its interval by the value of one parameter."""
    scale, ticks = _value_scale(found)
    frame = BucketSize(1.0, min(-0.5, *(one.low for one in found.scores)), 1.0)
    parts = [_y_axis(frame)]
    parts += [_text(frame.x(scale(value)), HEIGHT - BOTTOM + 15, words, "tick", "middle") for value, words in ticks]
    for value, one, number in zip(found.values, found.scores, found.trials, strict=True):
        x = frame.x(scale(value))
        title = f"trial {number}: {found.name} {value_in_words(value)}, score {format_estimate(one)}"
        parts.append(_tag("line", "whisker score", x1=x, x2=x, y1=frame.y(one.low), y2=frame.y(one.high)))
        parts.append(_tag("circle", "point score", title, cx=x, cy=frame.y(one.value), r=4))
    return _svg(f"Score by {found.name} of {found.recipe}", parts)


def _value_scale(found: Effect) -> tuple[Callable[[object], float], list[tuple[object, str]]]:
    """Where a value lies from 0 to 1, and the values to name: numbers by size, anything else side by side."""
    distinct = list(dict.fromkeys(found.values))
    numbers = [float(v) for v in distinct if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(distinct) or len(distinct) < 2 or len(distinct) <= 3:
        ordered = sorted(distinct, key=lambda v: (isinstance(v, str), v is not None and not isinstance(v, str) and v))
        places = {value: (place + 0.5) / len(ordered) for place, value in enumerate(ordered)}
        return lambda value: places[value], [(value, value_in_words(value)) for value in ordered]
    turn = math.log if found.log and min(numbers) > 0 else float
    low, high = turn(min(numbers)), turn(max(numbers))

    def scale(value: object) -> float:
        assert isinstance(value, int | float)
        return 0.04 + 0.92 * (turn(value) - low) / (high - low)

    ends: list[tuple[object, str]] = [(value, value_in_words(value)) for value in (min(numbers), max(numbers))]
    return scale, ends


def legend(names: Mapping[str, str] = SERIES) -> Markup:
    """The colours of the curves, as a row of HTML."""
    items = [Markup('<span class="key"><i class="{}"></i>{}</span>').format(key, word) for key, word in names.items()]
    return Markup('<p class="legend">{}</p>').format(Markup("").join(items))


def _overcooked(frame: BucketSize, step: int | None) -> Markup:
    """A shaded region from the overcooking point on, with its name."""
    if step is None:
        return Markup("")
    x, right = frame.x(step), WIDTH - RIGHT
    shade = _tag("rect", "burnt", x=x, y=TOP, width=max(right - x, 2), height=HEIGHT - TOP - BOTTOM)
    line = _tag("line", "burnt-line", x1=x, x2=x, y1=TOP - 4, y2=HEIGHT - BOTTOM)
    anchor = "end" if x > (LEFT + right) / 2 else "start"
    text = _text(x, TOP - 8, f"overcooked from {step}", "burnt-name", anchor)
    return shade + line + text


def _axes(frame: BucketSize, name: str = "images shown") -> Markup:
    parts = [_y_axis(frame)]
    for value in _ticks(0, frame.x_most, _round_step(frame.x_most / 4)):
        parts.append(_text(frame.x(value), HEIGHT - BOTTOM + 15, f"{value:g}", "tick", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, name, "axis-name", "middle"))
    return Markup("").join(parts)


def _y_axis(frame: BucketSize) -> Markup:
    parts = []
    for value in _ticks(frame.y_least, frame.y_most, 0.25 if frame.y_most - frame.y_least <= 1 else 0.5):
        y = frame.y(value)
        parts.append(_tag("line", "axis zero" if value == 0 else "axis", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(_text(LEFT - 6, y + 3.5, f"{value:g}", "tick", "end"))
    return Markup("").join(parts)


def _band(frame: BucketSize, curve: Sequence[CurvePoint], name: str) -> Markup:
    """The intervals around a line, where they are known."""
    known = [(p.at, p.terms[name]) for p in curve if name in p.terms]
    if len(known) < 2:
        return Markup("")
    edge = [(x, one.high) for x, one in known] + [(x, one.low) for x, one in reversed(known)]
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
    return Markup('<polygon class="band {}" points="{}"/>').format(name, path)


def _line(frame: BucketSize, curve: Sequence[CurvePoint], name: str, kind: str, title: str = "") -> Markup:
    points = [(p.at, getattr(p, name)) for p in curve if math.isfinite(getattr(p, name))]
    return _polyline(frame, points, kind, title)


def _polyline(frame: BucketSize, points: Iterable[tuple[float, float]], kind: str, title: str = "") -> Markup:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    inner = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<polyline class="{}" points="{}">{}</polyline>').format(kind, path, inner)


def _dots(frame: BucketSize, curve: Sequence[CurvePoint], name: str, unit: str = "step") -> Markup:
    """The points on a line, each with its value on hover."""
    dots = []
    for point in curve:
        value = float(getattr(point, name))
        if math.isfinite(value):
            term = point.terms.get(name)
            title = f"{unit} {point.at:g}: {SERIES[name]} {format_estimate(term) if term else f'{value:.2f}'}"
            dots.append(_tag("circle", f"point {name}", title, cx=frame.x(point.at), cy=frame.y(value), r=2.4))
    return Markup("").join(dots)


def _best(frame: BucketSize, point: CurvePoint) -> Markup:
    x, y = frame.x(point.at), frame.y(point.score)
    title = f"best checkpoint: step {point.at:g}, score {point.score:.2f}"
    return _tag("circle", "best-ring", title, cx=x, cy=y, r=6.5)


def _end_labels(frame: BucketSize, curve: Sequence[CurvePoint]) -> Markup:
    if not curve:
        return Markup("")
    last = curve[-1]
    ends = [
        (frame.x(last.at), frame.y(value), word, name)
        for name, word in SERIES.items()
        if math.isfinite(value := float(getattr(last, name)))
    ]
    return _labels(ends)


def _labels(ends: Sequence[tuple[float, float, str, str]]) -> Markup:
    """Names at the ends of lines, moved apart where they would overlap; each is (x, y, word, class)."""
    placed = spread([y for _, y, _, _ in ends], LABEL_GAP, TOP, HEIGHT - BOTTOM)
    return Markup("").join(
        _text(x + 7, y + 3.5, word, f"end {kind}") for (x, _, word, kind), y in zip(ends, placed, strict=True)
    )


def spread(wanted: Sequence[float], gap: float, least: float, most: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least `gap` apart and within bounds where there is room."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    floor = least
    for index in order:
        placed[index] = max(wanted[index], floor)
        floor = placed[index] + gap
    ceiling = most
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _ticks(least: float, most: float, step: float) -> list[float]:
    first = math.ceil(least / step - 1e-9)
    return [round(step * index, 6) for index in range(first, math.floor(most / step + 1e-9) + 1)]


def _round_step(wanted: float) -> float:
    """1, 2 or 5 times a power of ten, at least `wanted`."""
    power = 10.0 ** math.floor(math.log10(max(wanted, 1e-9)))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= wanted), 10 * power)


def _tag(name: str, kind: str, title: str = "", **attributes: float) -> Markup:
    pairs = " ".join(f'{key}="{value:.1f}"' for key, value in attributes.items())
    if not title:
        return Markup(f'<{name} class="{escape(kind)}" {pairs}/>')
    return Markup(f'<{name} class="{escape(kind)}" {pairs}><title>{escape(title)}</title></{name}>')


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, words)


def _svg(words: str, parts: Iterable[Markup], width: int = WIDTH, height: int = HEIGHT, kind: str = "chart") -> Markup:
    start = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(kind, width, height, words)
    return start + Markup("").join(parts) + Markup("</svg>")

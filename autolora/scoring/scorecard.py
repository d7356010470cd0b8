"""Scores the adapter in a slot: renders the probes, computes the terms, names broken constraints, says it in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autolora.adapters.lora import AdapterSet
from autolora.models.base import BaseModel, RenderSettings
from autolora.sampling import Pictures, Shot, render
from autolora.scoring.intervals import Array, Estimate, estimate
from autolora.scoring.probes import Probe
from autolora.scoring.scorer import Reference, Scorer
from autolora.scoring.terms import editability, relative_position


@dataclass(frozen=True)
class Scorecard:
    """The score of one checkpoint; a constraint is broken where its value is above 0."""

    score: Estimate
    weight: float  # the recommended LoRA weight, of those judged
    terms: dict[str, Estimate]
    by_weight: dict[str, dict[str, Estimate]]
    constraints: dict[str, float]
    capture: dict[str, float]  # by weight: share of class-only renders that show the character
    verdict: str

    @property
    def broken(self) -> list[str]:
        """Names of the broken constraints."""
        return [name for name, value in self.constraints.items() if value > 0]

    @property
    def objective(self) -> float:
        """The score where no constraint is broken, else how far they are, below any score: likeness buys nothing off.

        Feasibility rules of Deb (2000), An efficient constraint handling method for genetic algorithms.
        """
        violation = sum(max(0.0, value) for value in self.constraints.values())
        return self.score.value if violation == 0 else -violation


@dataclass(frozen=True)
class _Draws:
    """A term's value with its bootstrap draws."""

    value: float
    draws: Array

    def estimate(self) -> Estimate:
        return estimate(self.value, self.draws)


def render_probes(
    scorer: Scorer,
    model: BaseModel,
    adapter: AdapterSet,
    settings: RenderSettings,
    advance: Callable[[int], None] | None = None,
) -> dict[tuple[Probe, float], Pictures]:
    """Every probe at every judged weight, in shared batches."""
    keys = [(probe, weight) for probe in scorer.probes for weight in scorer.settings.weights]
    shots = [Shot(probe.prompt, seed, weight) for probe, weight in keys for seed in probe.seeds]
    pictures = render(model, shots, settings, adapter, advance)
    found, start = {}, 0
    for probe, weight in keys:
        found[probe, weight] = pictures[start : start + len(probe.seeds)]
        start += len(probe.seeds)
    return found


def score(scorer: Scorer, pictures: dict[tuple[Probe, float], Pictures]) -> Scorecard:
    """Score rendered probes."""
    keys = list(pictures)
    embedded = scorer.encoder.images(np.concatenate([pictures[key] for key in keys]))
    ends = np.cumsum([len(pictures[key]) for key in keys])[:-1]
    rows = dict(zip(keys, np.split(embedded, ends), strict=True))
    weights = scorer.settings.weights
    parts = {weight: _terms(scorer, {probe: rows[probe, weight] for probe in scorer.probes}) for weight in weights}
    joint = {weight: _harmonic(terms["fidelity"], terms["editability"]) for weight, terms in parts.items()}
    total = _Draws(
        float(np.mean([joint[w].value for w in weights])), np.mean([joint[w].draws for w in weights], axis=0)
    )
    by_weight = {f"{w:g}": {name: term.estimate() for name, term in parts[w].items()} for w in weights}
    worst = max(weights, key=lambda w: parts[w]["bleed_class"].value)
    terms = {
        "fidelity": _mean([parts[w]["fidelity"] for w in weights]),
        "likeness": _mean([parts[w]["likeness"] for w in weights]),
        "editability": _mean([parts[w]["editability"] for w in weights]),
        "bleed_class": parts[worst]["bleed_class"].estimate(),
    }
    constraints = _constraints(scorer, by_weight)
    capture = {f"{w:g}": _capture(scorer, {p: rows[p, w] for p in scorer.probes}) for w in weights}
    return Scorecard(
        score=total.estimate(),
        weight=recommended_weight(by_weight, scorer.settings.bleed_limit),
        terms=terms,
        by_weight=by_weight,
        constraints=constraints,
        capture=capture,
        verdict=verdict(terms, by_weight[f"{max(weights):g}"], constraints, capture),
    )


def recommended_weight(by_weight: dict[str, dict[str, Estimate]], bleed_limit: float) -> float:
    """The smallest weight with 95% of the fidelity that can be had within the bleed limit; else the smallest weight."""
    feasible = {float(w): t["fidelity"].value for w, t in by_weight.items() if t["bleed_class"].value <= bleed_limit}
    enough = 0.95 * max(feasible.values(), default=0.0)
    return min((w for w, fidelity in feasible.items() if fidelity >= enough), default=min(map(float, by_weight)))


def _constraints(scorer: Scorer, by_weight: dict[str, dict[str, Estimate]]) -> dict[str, float]:
    """Named constraints, above 0 where broken: bleed by its upper bound, the others by their lower."""
    settings = scorer.settings
    strongest = by_weight[f"{max(settings.weights):g}"]
    return {
        "bleed_class": max(terms["bleed_class"].high for terms in by_weight.values()) - settings.bleed_limit,
        "editability": settings.editability_limit - min(terms["editability"].low for terms in by_weight.values()),
        "undercooked": settings.likeness_limit - strongest["likeness"].low,
    }


def _mean(terms: list[_Draws]) -> Estimate:
    return estimate(float(np.mean([t.value for t in terms])), np.mean([t.draws for t in terms], axis=0))


def _harmonic(a: _Draws, b: _Draws) -> _Draws:
    """2ab / (a + b) of two terms held within [0, 1], so that no excess of one buys off the other."""

    def combine(x: Array, y: Array) -> Array:
        x, y = np.clip(x, 0, 1), np.clip(y, 0, 1)
        return np.asarray(2 * x * y / np.maximum(x + y, 1e-9))

    return _Draws(float(combine(np.asarray(a.value), np.asarray(b.value))), combine(a.draws, b.draws))


def _terms(scorer: Scorer, rows: dict[Probe, Array]) -> dict[str, _Draws]:
    """The terms at one weight.

    Fidelity asks for each concept and against its siblings (half mean, half worst), likeness for the character alone.
    """
    concepts = []
    for reference in scorer.concepts:
        own = [p for p in scorer.probes if p.group == "trigger" and p.concept == reference.name]
        concepts.append(_position(scorer, reference, own, rows))
    values, draws = [c.value for c in concepts], np.stack([c.draws for c in concepts])
    fidelity = _Draws(0.5 * float(np.mean(values)) + 0.5 * min(values), 0.5 * draws.mean(0) + 0.5 * draws.min(0))
    asked = [p for p in scorer.probes if p.group == "trigger"]
    class_only = [p for p in scorer.probes if p.group == "class_only"]
    edited = [(i, p) for i, p in enumerate(scorer.probes) if p.group == "novel"]
    follows = editability(
        np.stack([rows[p] for _, p in edited]),
        np.stack([scorer.base[p] for _, p in edited]),
        scorer.texts[[i for i, _ in edited]],
        scorer.settings.bootstrap,
        seed=1,
    )
    return {
        "fidelity": fidelity,
        "likeness": _position(scorer, scorer.character, asked, rows),
        "editability": _Draws(*follows),
        "bleed_class": _position(scorer, scorer.character, class_only, rows),
    }


def _position(scorer: Scorer, reference: Reference, probes: list[Probe], rows: dict[Probe, Array]) -> _Draws:
    rendered = np.stack([reference.margin(rows[p]) for p in probes])
    base = np.stack([reference.margin(scorer.base[p]) for p in probes])
    return _Draws(*relative_position(rendered, base, reference.real, scorer.settings.bootstrap, seed=1))


def _capture(scorer: Scorer, rows: dict[Probe, Array]) -> float:
    """Share of class-only renders nearer to the character than to the base model's mean picture."""
    probes = [p for p in scorer.probes if p.group == "class_only"]
    margin = scorer.character.margin
    base = float(np.mean([margin(scorer.base[p]).mean() for p in probes]))
    middle = (base + float(scorer.character.real.mean())) / 2
    return float(np.mean([margin(rows[p]) > middle for p in probes]))


def verdict(
    terms: dict[str, Estimate], full: dict[str, Estimate], constraints: dict[str, float], capture: dict[str, float]
) -> str:
    """One sentence that a person understands; `full` holds the terms at the strongest weight judged."""
    shares = ", ".join(f"{share:.0%} at weight {weight}" for weight, share in reversed(capture.items()))
    bleed = terms["bleed_class"]
    if bleed.value > bleed.high - constraints["bleed_class"]:
        return f"overcooked: the class word alone shows the character in {shares}"
    likeness = full["likeness"]
    if likeness.value < likeness.low + constraints["undercooked"]:
        return f"undercooked: likeness {likeness.value:.2f} of the real pictures"
    if constraints["undercooked"] > 0:
        return f"undercooking not ruled out: likeness {likeness.value:.2f}, perhaps {likeness.low:.2f}"
    if constraints["editability"] > 0:
        return f"stiff: prompts are followed {terms['editability'].value:.2f} as well as by the base model"
    if constraints["bleed_class"] > 0:
        return f"bleed not ruled out: the class word alone shows the character in {shares}"
    return f"good: likeness {full['likeness'].value:.2f}, the class word alone shows the character in {shares}"

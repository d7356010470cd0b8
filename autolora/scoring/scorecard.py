"""Scores the adapter in a slot: renders the probes, combines the terms, names broken constraints, says it in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autolora.adapters.adapter_set import AdapterSet
from autolora.models.base import BaseModel
from autolora.sampling import Images, RenderRequest, render
from autolora.scoring.diagnosis import verdict
from autolora.scoring.encoders import Embeddings
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import Array, Estimate, estimate
from autolora.scoring.metrics import BootstrapEstimate, MetricSet, measure, measure_likeness
from autolora.scoring.scorer import Scorer, embed_each
from autolora.scoring.settings import BELOW, ScoringSettings
from autolora.scoring.terms import clipped_harmonic_mean


@dataclass(frozen=True)
class Scorecard:
    """The score of one checkpoint; a constraint is broken where its value is above 0."""

    score: Estimate
    weight: float  # the recommended LoRA weight, of those judged
    terms: dict[str, Estimate]
    by_weight: dict[str, dict[str, Estimate]]
    constraints: dict[str, float]
    bleed_rate: dict[str, float]  # by weight: share of class-only renders that show the character
    unmeasurable: dict[str, str]  # why a term is missing
    verdict: str
    second: dict[str, dict[str, Estimate]]  # by weight: likeness and bleed as another encoder sees them
    bleed_by_prompt: dict[str, float] = field(
        default_factory=dict
    )  # at the strongest: share with the character, by prompt

    @property
    def broken(self) -> list[str]:
        """Names of the broken constraints."""
        return [name for name, value in self.constraints.items() if value > 0]

    @property
    def objective(self) -> float:
        """The score, but below every unbroken one's where a constraint is broken: likeness buys nothing off.

        Broken ones stay in the order of their scores, which agrees better with the oracle's (.84 on the bank's first
        414 checkpoints) than the sum of violations does that Deb (2000) proposes (.77).
        """
        return self.score.value - BELOW if self.broken else self.score.value


Rendered = Mapping[tuple[EvalPrompt, float], Images]  # by probe and weight, one picture a seed
Embedded = Mapping[float, Mapping[EvalPrompt, Embeddings]]  # by weight and probe, one row a seed


def render_eval_prompts(
    scorer: Scorer,
    model: BaseModel,
    adapter: AdapterSet,
    advance: Callable[[int], None] | None = None,
) -> Rendered:
    """Every probe at every judged weight, in shared batches."""
    keys = [(probe, weight) for probe in scorer.prompts for weight in scorer.settings.weights]
    shots = [RenderRequest(probe.prompt, seed, weight) for probe, weight in keys for seed in probe.seeds]
    pictures = render(model, shots, scorer.render_settings, adapter, advance)
    found, start = {}, 0
    for probe, weight in keys:
        found[probe, weight] = pictures[start : start + len(probe.seeds)]
        start += len(probe.seeds)
    return found


def score(scorer: Scorer, pictures: Rendered, embedded: Embedded | None = None) -> Scorecard:
    """Score rendered probes; `embedded` is what `embed` made of them, where that is known already."""
    weights, at, second = scorer.settings.weights, embedded or embed(scorer, pictures), {}
    if scorer.second:
        seen = embed(scorer.second, pictures)
        second = {f"{weight:g}": measure_likeness(scorer.second, seen[weight]) for weight in weights}
    parts = {w: measure(scorer, at[w], {probe: pictures[probe, w] for probe in scorer.prompts}) for w in weights}
    by_weight = {f"{weight:g}": part.terms for weight, part in parts.items()}
    strongest = parts[max(weights)]
    constraints = constraint_violations(by_weight, scorer.settings)
    capture = {f"{weight:g}": _capture(scorer, at[weight]) for weight in weights}
    whole = _mean([_score_at_weight(part, scorer.settings.max_bleed) for part in parts.values()])
    wide = estimate(whole.value, whole.draws, *prompts_asked(scorer))
    return Scorecard(
        score=Estimate(wide.value, max(wide.low, -1.0), min(wide.high, 1.0)),
        weight=recommended_weight(by_weight, scorer.settings),
        terms=_overall(list(parts.values())),
        by_weight=by_weight,
        constraints=constraints,
        bleed_rate=capture,
        unmeasurable=strongest.unmeasurable,
        verdict=verdict(strongest.terms, constraints, capture, scorer.settings),
        second=second,
        bleed_by_prompt=_leaks(scorer, at[max(weights)]),
    )


def prompts_asked(scorer: Scorer) -> tuple[int, int]:
    """How many prompts the score's two halves are drawn from, those of all concepts together."""
    return len(scorer.select("trigger")), len(scorer.select("novel", "style", "people"))


def embed(scorer: Scorer, pictures: Rendered) -> Embedded:
    """By weight, views of each probe's renders, one a seed."""
    rows = embed_each(scorer.encoder, pictures)
    return {weight: {p: rows[p, weight] for p in scorer.prompts} for weight in scorer.settings.weights}


def recommended_weight(by_weight: dict[str, dict[str, Estimate]], settings: ScoringSettings) -> float:
    """The smallest weight within the bleed limit whose fidelity is at least 95% of the best such weight's.

    Where every weight bleeds more it is the smallest.
    """
    weights = sorted(by_weight, key=float)
    calm = [w for w in weights if by_weight[w]["bleed_class"].high <= settings.max_bleed] or weights[:1]
    best = max(by_weight[w]["fidelity"].value for w in calm)
    enough = best - 0.05 * abs(best) - 1e-9  # nothing learnt may be slightly below 0
    return float(next(w for w in calm if by_weight[w]["fidelity"].value >= enough))


def constraint_violations(by_weight: dict[str, dict[str, Estimate]], settings: ScoringSettings) -> dict[str, float]:
    """Named constraints, above 0 where broken at any judged weight.

    Bleed, fidelity and editability must lie within their limits with the whole interval; the others are broken only
    where the whole interval is beyond the limit, as their samples are small. Too strong is what shows the character
    less at the strongest weight than at a weaker one, with intervals apart: burnt in its lines, whatever its colours.
    """
    every = list(by_weight.values())
    *weaker, strongest = (by_weight[weight] for weight in sorted(by_weight, key=float))
    low, high = settings.diversity_range
    found = {
        "bleed_class": max(terms["bleed_class"].high for terms in every) - settings.max_bleed,
        "editability": settings.min_editability - min(terms["editability"].low for terms in every),
        "undercooked": settings.min_fidelity - strongest["fidelity"].low,
        "burn": max(terms["burn"].low for terms in every) - settings.max_oversaturation,
    }
    if weaker:
        found["too_strong"] = max(terms["fidelity"].low for terms in weaker) - strongest["fidelity"].high
    if "bleed_cross" in strongest:
        found["bleed_cross"] = max(terms["bleed_cross"].low for terms in every) - settings.max_concept_mixing
    if "memorisation" in strongest:
        found["memorisation"] = max(terms["memorisation"].low for terms in every) - settings.max_memorization
    if "spread" in strongest:
        found["spread"] = max(max(low - terms["spread"].high, terms["spread"].low - high) for terms in every)
    return found


def _overall(parts: list[MetricSet]) -> dict[str, Estimate]:
    """Each term over all weights: the mean of what is wanted, the worst of what is not."""
    worst: dict[str, Callable[[Estimate], float]] = {"spread": lambda term: abs(term.value - 1)}
    found = {
        "fidelity": _mean([part.fidelity for part in parts]).estimate(),
        "likeness": _mean([part.likeness for part in parts]).estimate(),
        "editability": _mean([part.editability for part in parts]).estimate(),
    }
    for name in parts[-1].defects:
        found[name] = max((p.defects[name] for p in parts), key=worst.get(name, lambda term: term.value))
    return found


def _mean(terms: list[BootstrapEstimate]) -> BootstrapEstimate:
    return BootstrapEstimate(float(np.mean([t.value for t in terms])), np.mean([t.draws for t in terms], axis=0))


def _score_at_weight(part: MetricSet, max_bleed: float) -> BootstrapEstimate:
    """What a LoRA is worth at one weight: `clipped_harmonic_mean` of fidelity and editability, less the bleed above its limit."""

    def of(fidelity: Array, editability: Array, bleed: Array) -> Array:
        return np.asarray(clipped_harmonic_mean(fidelity, editability) - np.maximum(bleed - max_bleed, 0))

    terms = (part.fidelity, part.editability, part.bleed)
    return BootstrapEstimate(
        float(of(*(np.asarray(term.value) for term in terms))), of(*(term.draws for term in terms))
    )


def _capture(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> float:
    """Share of class-only renders that pass for the character."""
    return float(np.mean([share for _, share in _shown(scorer, rows, "class_only")]))


def _leaks(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> dict[str, float]:
    """How often each class word and neighbour of the trigger yields the character; the class word itself first."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, share in _shown(scorer, rows, "class_only", "neighbour"):
        by_prompt.setdefault(prompt, []).append(share)
    return {prompt: round(float(np.mean(shares)), 4) for prompt, shares in by_prompt.items()}


def _shown(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings], *groups: str) -> list[tuple[str, float]]:
    """Each probe's prompt and the share of its renders that pass for the character."""
    passes = scorer.references.bleed.passes
    return [(probe.prompt, float((passes(rows[probe]) > 0.5).mean())) for probe in scorer.select(*groups)]

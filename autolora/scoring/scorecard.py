"""Scores the adapter in slot 0: renders the evaluation prompts, combines the metrics and checks the constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autolora.adapters.adapter_set import AdapterSet
from autolora.models.base import BaseModel
from autolora.sampling import Images, RenderRequest, render
from autolora.scoring.diagnosis import verdict
from autolora.scoring.embeddings import Embeddings
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import Array, BootstrapEstimate, Estimate, estimate, mean_of
from autolora.scoring.metric_set import MetricSet, measure, measure_by_second_encoder, over_all_weights
from autolora.scoring.metric_types import Evaluation
from autolora.scoring.metrics import CONSTRAINTS
from autolora.scoring.scorer import Scorer, embed_each
from autolora.scoring.settings import BELOW, ScoringSettings
from autolora.scoring.terms import clipped_harmonic_mean


@dataclass(frozen=True)
class Scorecard:
    """The score of one checkpoint."""

    score: Estimate
    weight: float  # the recommended LoRA weight among those that were scored
    terms: dict[str, Estimate]  # over all weights
    by_weight: dict[str, dict[str, Estimate]]
    constraints: dict[str, float]  # above 0 where broken
    bleed_rate: dict[str, float]  # by weight: share of the class word's renders that show the character
    unmeasurable: dict[str, str]  # why a metric is missing
    verdict: str
    second: dict[str, dict[str, Estimate]]  # by weight: likeness and bleed measured with the second encoder
    bleed_by_prompt: dict[str, float] = field(default_factory=dict)  # the same share by prompt at the strongest weight

    @property
    def broken(self) -> list[str]:
        """Names of the broken constraints."""
        return [name for name, value in self.constraints.items() if value > 0]

    @property
    def objective(self) -> float:
        """The score, lowered below every unbroken checkpoint's if a constraint is broken.

        So likeness never makes up for a broken constraint. Broken checkpoints stay in the order of their scores, which
        agrees better with the attribute classifier (.84 on the replay data's first 414 checkpoints) than the sum of
        violations of Deb (2000) does (.77).
        """
        return self.score.value - BELOW if self.broken else self.score.value


Rendered = Mapping[tuple[EvalPrompt, float], Images]  # by prompt and weight: one image per seed
Embedded = Mapping[float, Mapping[EvalPrompt, Embeddings]]  # by weight and prompt: one row per seed


def render_eval_prompts(
    scorer: Scorer,
    model: BaseModel,
    adapter: AdapterSet,
    advance: Callable[[int], None] | None = None,
) -> Rendered:
    """Render every evaluation prompt at every weight of the score, in shared batches."""
    keys = [(prompt, weight) for prompt in scorer.prompts for weight in scorer.settings.weights]
    requests = [RenderRequest(prompt.prompt, seed, weight) for prompt, weight in keys for seed in prompt.seeds]
    images = render(model, requests, scorer.render_settings, adapter, advance)
    rendered, start = {}, 0
    for prompt, weight in keys:
        rendered[prompt, weight] = images[start : start + len(prompt.seeds)]
        start += len(prompt.seeds)
    return rendered


def score(scorer: Scorer, rendered: Rendered, embedded: Embedded | None = None) -> Scorecard:
    """Score the renders of the evaluation prompts; `embedded` is the result of `embed` if it was called before."""
    weights, embeddings, second = scorer.settings.weights, embedded or embed(scorer, rendered), {}
    if scorer.second:
        by_second = embed(scorer.second, rendered)
        second = {f"{weight:g}": measure_by_second_encoder(scorer.second, by_second[weight]) for weight in weights}
    sets = {
        weight: measure(Evaluation(scorer, embeddings[weight], {p: rendered[p, weight] for p in scorer.prompts}))
        for weight in weights
    }
    by_weight = {f"{weight:g}": metric_set.terms for weight, metric_set in sets.items()}
    strongest = sets[max(weights)]
    constraints = constraint_violations(by_weight, scorer.settings)
    bleed_rate = {f"{weight:g}": _bleed_rate(scorer, embeddings[weight]) for weight in weights}
    mean = mean_of([_score_at_weight(metric_set, scorer.settings.max_bleed) for metric_set in sets.values()])
    total = estimate(mean.value, mean.draws, *score_sample_sizes(scorer))
    return Scorecard(
        score=Estimate(total.value, max(total.low, -1.0), min(total.high, 1.0)),
        weight=recommended_weight(by_weight, scorer.settings),
        terms=over_all_weights(list(sets.values())),
        by_weight=by_weight,
        constraints=constraints,
        bleed_rate=bleed_rate,
        unmeasurable=strongest.unmeasurable,
        verdict=verdict(strongest.terms, constraints, bleed_rate, scorer.settings),
        second=second,
        bleed_by_prompt=_bleed_by_prompt(scorer, embeddings[max(weights)]),
    )


def score_sample_sizes(scorer: Scorer) -> tuple[int, int]:
    """Return the number of prompts of fidelity and of editability, over all concepts."""
    return len(scorer.select("trigger")), len(scorer.select("novel", "style", "people"))


def embed(scorer: Scorer, rendered: Rendered) -> Embedded:
    """Embed the renders; return one row per seed, by weight and prompt."""
    rows = embed_each(scorer.encoder, rendered)
    return {weight: {p: rows[p, weight] for p in scorer.prompts} for weight in scorer.settings.weights}


def recommended_weight(by_weight: dict[str, dict[str, Estimate]], settings: ScoringSettings) -> float:
    """Return the smallest weight with bleed within its limit and at least 95% of the best such weight's fidelity.

    If every weight has more bleed, it is the smallest weight.
    """
    weights = sorted(by_weight, key=float)
    allowed = [w for w in weights if by_weight[w]["bleed_class"].high <= settings.max_bleed] or weights[:1]
    best = max(by_weight[w]["fidelity"].value for w in allowed)
    enough = best - 0.05 * abs(best) - 1e-9  # a LoRA that has learnt nothing may have a fidelity slightly below 0
    return float(next(w for w in allowed if by_weight[w]["fidelity"].value >= enough))


def constraint_violations(by_weight: dict[str, dict[str, Estimate]], settings: ScoringSettings) -> dict[str, float]:
    """Return the violation of each constraint, which is above 0 if the constraint is broken at any weight."""
    terms = [by_weight[weight] for weight in sorted(by_weight, key=float)]
    violations = {}
    for constraint in CONSTRAINTS:
        violation = constraint.violation(terms, settings) if constraint.metric in terms[-1] else None
        if violation is not None:
            violations[constraint.name] = violation
    return violations


def _score_at_weight(metric_set: MetricSet, max_bleed: float) -> BootstrapEstimate:
    """Compute the score at one weight.

    It is the clipped harmonic mean of fidelity and editability, minus the bleed above its limit.
    """

    def combine(fidelity: Array, editability: Array, bleed: Array) -> Array:
        return np.asarray(clipped_harmonic_mean(fidelity, editability) - np.maximum(bleed - max_bleed, 0))

    parts = (metric_set.draws("fidelity"), metric_set.draws("editability"), metric_set.class_bleed)
    value = combine(*(np.asarray(part.value) for part in parts))
    return BootstrapEstimate(float(value), combine(*(part.draws for part in parts)))


def _bleed_rate(scorer: Scorer, embeddings: Mapping[EvalPrompt, Embeddings]) -> float:
    """Return the share of the class word's renders that pass for the character."""
    return float(np.mean([share for _, share in _shares_with_character(scorer, embeddings, "class_only")]))


def _bleed_by_prompt(scorer: Scorer, embeddings: Mapping[EvalPrompt, Embeddings]) -> dict[str, float]:
    """Return the same share for each class-word prompt and each prompt with a word similar to the trigger."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, share in _shares_with_character(scorer, embeddings, "class_only", "neighbour"):
        by_prompt.setdefault(prompt, []).append(share)
    return {prompt: round(float(np.mean(shares)), 4) for prompt, shares in by_prompt.items()}


def _shares_with_character(
    scorer: Scorer, embeddings: Mapping[EvalPrompt, Embeddings], *groups: str
) -> list[tuple[str, float]]:
    """Return each prompt's text and the share of its renders that pass for the character."""
    pass_scores = scorer.references.bleed.pass_scores
    return [(p.prompt, float((pass_scores(embeddings[p]) > 0.5).mean())) for p in scorer.select(*groups)]

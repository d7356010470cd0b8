"""The metrics of a checkpoint and the constraints on them.

To add a metric, write a function in this file and add an entry to METRICS. If it has a limit, add an entry to
CONSTRAINTS, the limit to `ScoringSettings` and its default to `conf/scoring/`. Scorecards, verdicts, remedies, reports
and model cards read these two tables. Nothing here imports torch, because reports need the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autolora.scoring import failure_metrics
from autolora.scoring.embeddings import Embeddings
from autolora.scoring.eval_prompts import EvalPrompt
from autolora.scoring.intervals import Array, Estimate, estimate
from autolora.scoring.metric_types import (
    Constraint,
    Evaluation,
    Metric,
    MetricUnmeasurable,
    Terms,
    must_not_exceed,
    must_reach,
    must_stay_below,
)
from autolora.scoring.score_metrics import bleed_in, class_bleed_rate, fidelity, likeness, prompt_following
from autolora.scoring.settings import ScoringSettings

if TYPE_CHECKING:  # this imports torch
    from autolora.scoring.scorer import Scorer


def concept_mixing(evaluation: Evaluation) -> Estimate:
    """Measure how often renders of one concept show another."""
    scorer = evaluation.scorer
    if len(scorer.references.concepts) < 2:
        raise MetricUnmeasurable("there is only one concept")
    rendered, real = concept_pass_scores(scorer, evaluation.embeddings)
    return estimate(*failure_metrics.concept_mixing(rendered, real, scorer.settings.n_bootstrap, seed=1))


def concept_pass_scores(scorer: Scorer, embeddings: Mapping[EvalPrompt, Embeddings]) -> tuple[list[Array], list[Array]]:
    """Return (..., concepts) pass scores for every concept of each concept's renders, and of its validation images."""
    concepts = scorer.references.concepts

    def scores(images: Embeddings) -> Array:
        return np.stack([concept.pass_scores(images) for concept in concepts], axis=-1)

    rendered = [
        np.stack([scores(embeddings[p]) for p in scorer.select("trigger", concept=concept.name)])
        for concept in concepts
    ]
    return rendered, [scores(concept.validation) for concept in concepts]


def memorization(evaluation: Evaluation) -> Estimate:
    """Measure how many renders with the trigger are nearly copies of a training image."""
    scorer = evaluation.scorer
    rendered = np.concatenate([evaluation.embeddings[p].pooled for p in scorer.select("trigger")])
    return failure_metrics.memorization(rendered, scorer.references.training)


def _class_renders(evaluation: Evaluation) -> tuple[Array, Array]:
    """Return (prompts, seeds, D) embeddings of the class word's renders, and of the base model's."""
    prompts, base = evaluation.scorer.select("class_only"), evaluation.scorer.base_embeddings
    return np.stack([evaluation.embeddings[p].pooled for p in prompts]), np.stack([base[p].pooled for p in prompts])


def diversity(evaluation: Evaluation) -> Estimate:
    """Measure how much renders of the class word differ, relative to the base model's."""
    n_bootstrap = evaluation.scorer.settings.n_bootstrap
    return estimate(*failure_metrics.diversity(*_class_renders(evaluation), n_bootstrap, seed=1))


def class_drift(evaluation: Evaluation) -> Estimate:
    """Measure how far renders of the class word moved from the base model's."""
    n_bootstrap = evaluation.scorer.settings.n_bootstrap
    return estimate(*failure_metrics.class_drift(*_class_renders(evaluation), n_bootstrap, seed=1))


def oversaturation(evaluation: Evaluation) -> Estimate:
    """Measure oversaturation on the group of prompts where it is more certain.

    The trigger alone may be oversaturated where other outfits are not, and a character with one outfit has too few
    prompts with only the trigger.
    """
    scorer, estimates = evaluation.scorer, []
    for group in ("trigger", "novel"):
        prompts = scorer.select(group)
        rendered = np.concatenate([evaluation.renders[p] for p in prompts])
        base = np.concatenate([scorer.base_renders[p] for p in prompts])
        references, n_bootstrap = scorer.reference_images.all_training, scorer.settings.n_bootstrap
        estimates.append(
            estimate(*failure_metrics.oversaturation(rendered, base, references, len(prompts), n_bootstrap, seed=1))
        )
    return max(estimates, key=lambda one_group: one_group.low)


METRICS = (
    Metric(
        "fidelity",
        fidelity,
        "fidelity",
        "likeness of the character and of each outfit; 1 = as many renders pass as real images",
        in_report=True,
        is_share=True,
        by_second_encoder=True,
    ),
    Metric(
        "likeness",
        likeness,
        "likeness",
        "renders with the trigger that pass for the character; 1 = as many as of its real images",
        in_report=True,
        is_share=True,
        by_second_encoder=True,
    ),
    Metric(
        "editability",
        prompt_following,
        "editability",
        "how well prompts for other outfits and styles are followed; 1 = as well as by the base model",
        in_report=True,
    ),
    Metric(
        "bleed_class",
        class_bleed_rate,
        "bleed",
        "renders of the class word alone that pass for the character; 0 is best",
        in_report=True,
        by_second_encoder=True,
    ),
    Metric(
        "bleed_context",
        lambda evaluation: bleed_in(evaluation, "class_context", "neighbour"),
        "bleed in context",
        "renders of the class word with other tags that pass for the character",
    ),
    Metric("bleed_visible", lambda evaluation: bleed_in(evaluation, "visible"), "bleed of visible tags"),
    Metric("bleed_unrelated", lambda evaluation: bleed_in(evaluation, "unrelated"), "bleed in unrelated prompts"),
    Metric(
        "bleed_cross",
        concept_mixing,
        "concept mixing",
        "renders of one outfit that show another, beyond what its real images do",
        is_share=True,
    ),
    Metric(
        "memorisation",
        memorization,
        "memorization",
        "renders that are as close to a training image as training images are to one another",
        is_share=True,
    ),
    Metric(
        "spread",
        diversity,
        "diversity",
        "how much renders of the class word differ; 1 = as much as the base model's",
        badness=lambda estimate: abs(estimate.value - 1),
    ),
    Metric("class_drift", class_drift, "class drift"),
    Metric("burn", oversaturation, "oversaturation"),
)


def _less_faithful_at_full_weight(by_weight: Sequence[Terms], settings: ScoringSettings) -> float | None:
    """Return how much less the strongest weight shows the character than a weaker one, with separate intervals."""
    *weaker, strongest = by_weight
    return max(terms["fidelity"].low for terms in weaker) - strongest["fidelity"].high if weaker else None


def _outside_diversity_range(by_weight: Sequence[Terms], settings: ScoringSettings) -> float:
    """Return how far the whole interval of diversity lies outside its range."""
    low, high = settings.diversity_range
    return max(max(low - terms["spread"].high, terms["spread"].low - high) for terms in by_weight)


CONSTRAINTS = (
    Constraint(
        "bleed_class",
        "bleed_class",
        must_stay_below("bleed_class", "max_bleed"),
        label="bleed",
        gravity=1,
        fault="overcooked",  # `diagnosis` adds the weights
        remedy="more preservation (train.prior_preservation_ratio), a lower weight, an earlier checkpoint",
    ),
    Constraint(
        "editability",
        "editability",
        must_reach("editability", "min_editability"),
        label="inflexible",
        gravity=8,
        fault="inflexible: prompts are followed {editability} as well as by the base model",
        remedy="fewer images, preservation (train.prior_preservation_ratio), more varied captions",
    ),
    Constraint(
        "undercooked",
        "fidelity",
        lambda by_weight, settings: settings.min_fidelity - by_weight[-1]["fidelity"].low,
        label="undercooked",
        gravity=5,
        fault="undercooked: only {fidelity} of the way from the base model to the real images",
        remedy="more images, a higher learning rate, a larger dim",
        remedy_rank=7,  # after that of mixed concepts
    ),
    Constraint(
        "burn",
        "burn",
        must_not_exceed("burn", "max_oversaturation"),
        label="oversaturated",
        gravity=3,
        fault="oversaturated: colours or edges are {burn} deviations beyond the base model and the training images",
        remedy="a lower learning rate, train.scale_weight_norms=1",
    ),
    Constraint(
        "too_strong",
        "fidelity",
        _less_faithful_at_full_weight,
        label="too strong",
        gravity=4,
        fault="too strong: {fidelity} of the way from the base model to the real images, less than at a lower weight",
        remedy="a lower weight, fewer images, a lower learning rate",
    ),
    Constraint(
        "bleed_cross",
        "bleed_cross",
        must_not_exceed("bleed_cross", "max_concept_mixing"),
        label="concepts mixed",
        gravity=6,
        fault="concepts mixed: {bleed_cross} more renders of one concept show another than its real images do",
        remedy="a trigger of its own for each concept, more images per concept",
    ),
    Constraint(
        "memorisation",
        "memorisation",
        must_not_exceed("memorisation", "max_memorization"),
        label="memorized",
        gravity=2,
        fault="memorized: {memorisation} of renders are as close to a training image as those are to one another",
        remedy="fewer images, more and more varied training images",
    ),
    Constraint(
        "spread",
        "spread",
        _outside_diversity_range,
        label="diversity changed",
        gravity=9,
        fault="diversity lost or gained: renders of the class word differ {spread} as much as the base model's",
        remedy="preservation (train.prior_preservation_ratio), fewer images",
    ),
)


def metric_label(name: str) -> str:
    """Return the name of a metric for tables and reports; other names are returned with spaces."""
    return next((metric.label for metric in METRICS if metric.name == name), name.replace("_", " "))


def constraint_label(name: str) -> str:
    """Return the name of a broken constraint for tables and reports; other names are returned with spaces."""
    labels = (constraint.label for constraint in CONSTRAINTS if constraint.name == name)
    return next(labels, name.replace("_", " "))

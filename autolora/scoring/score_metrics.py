"""The metrics that the score is made of: fidelity, editability and bleed.

Nothing here imports torch, because reports read the table in `metrics.py`, which names these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from autolora.scoring.eval_prompts import EvalPrompt, render_count
from autolora.scoring.intervals import BootstrapEstimate, Estimate, with_exact_bounds
from autolora.scoring.metric_types import Evaluation
from autolora.scoring.terms import editability, relative_position

if TYPE_CHECKING:  # this imports torch
    from autolora.scoring.references import Reference


def fidelity(evaluation: Evaluation) -> BootstrapEstimate:
    """Measure half the character's likeness, a quarter of its concepts' mean and a quarter of their minimum."""
    references = evaluation.scorer.references
    character = likeness(evaluation)
    concepts = [
        position(evaluation, concept, evaluation.scorer.select("trigger", concept=concept.name))
        for concept in references.concepts
    ]
    values, draws = [concept.value for concept in concepts], np.stack([concept.draws for concept in concepts])
    return BootstrapEstimate(
        0.5 * character.value + 0.25 * float(np.mean(values)) + 0.25 * min(values),
        0.5 * character.draws + 0.25 * draws.mean(0) + 0.25 * draws.min(0),
    )


def likeness(evaluation: Evaluation) -> BootstrapEstimate:
    """Measure how many renders with the trigger pass for the character, whatever its concept."""
    scorer = evaluation.scorer
    return position(evaluation, scorer.references.character, scorer.select("trigger"))


def position(evaluation: Evaluation, reference: Reference, prompts: list[EvalPrompt]) -> BootstrapEstimate:
    """Measure the pass scores of renders on a scale from the base model's renders (0) to real images (1)."""
    scorer = evaluation.scorer
    rendered = np.stack([reference.pass_scores(evaluation.embeddings[p]) for p in prompts])
    base = np.stack([reference.pass_scores(scorer.base_embeddings[p]) for p in prompts])
    value, draws = relative_position(rendered, base, reference.real, scorer.settings.n_bootstrap, seed=1)
    return BootstrapEstimate(value, draws)


def prompt_following(evaluation: Evaluation) -> BootstrapEstimate:
    """Measure editability on the prompts that change the character's outfit, its style or the people beside it."""
    scorer = evaluation.scorer
    prompts = scorer.select("novel", "style", "people")
    return BootstrapEstimate(
        *editability(
            np.stack([evaluation.embeddings[p].pooled for p in prompts]),
            np.stack([scorer.base_embeddings[p].pooled for p in prompts]),
            np.stack([scorer.text_embeddings[p] for p in prompts]),
            scorer.settings.n_bootstrap,
            seed=1,
        )
    )


def class_bleed(evaluation: Evaluation) -> BootstrapEstimate:
    """Measure how much of the character the class word alone shows, from 0 to 1.

    Showing it less often than the base model does is no bleed. Only the class word alone has a limit: every LoRA that
    resembles its character shows it in some other prompts (in 25 to 60% of renders on development characters 4, 10 and
    11 by the attribute classifier, where the class word alone never shows it).
    """
    scorer = evaluation.scorer
    bleed = position(evaluation, scorer.references.bleed, scorer.select("class_only"))
    return BootstrapEstimate(float(np.clip(bleed.value, 0, 1)), np.clip(bleed.draws, 0, 1))


def class_bleed_rate(evaluation: Evaluation) -> Estimate:
    """Measure class bleed, with exact bounds if no render or every render shows the character."""
    renders = render_count(evaluation.scorer.select("class_only"))
    return with_exact_bounds(class_bleed(evaluation).estimate(), renders)


def bleed_in(evaluation: Evaluation, *groups: str) -> Estimate | None:
    """Measure bleed on other groups of prompts without the trigger."""
    scorer = evaluation.scorer
    prompts = scorer.select(*groups)
    if not prompts:
        return None
    bleed = position(evaluation, scorer.references.bleed, prompts)
    return with_exact_bounds(bleed.estimate(), render_count(prompts))

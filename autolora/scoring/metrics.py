"""Measures every term of a checkpoint at one weight, from embedded renders of the probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from autolora.sampling import Images
from autolora.scoring import failure_metrics as defects
from autolora.scoring.encoders import Embeddings
from autolora.scoring.eval_prompts import EvalPrompt, render_count
from autolora.scoring.intervals import Array, Estimate, estimate, with_exact_bounds
from autolora.scoring.references import Reference
from autolora.scoring.scorer import Scorer
from autolora.scoring.terms import editability, relative_position

# Only the class word alone has a limit: every LoRA that is like its character shows in some contexts (by the oracle in
# 25 to 60% of renders on development characters 4, 10 and 11, where the class word alone shows it in none).
CLASS_ONLY = "class_only"
OTHER_BLEED = {
    "bleed_context": ("class_context", "neighbour"),
    "bleed_visible": ("visible",),
    "bleed_unrelated": ("unrelated",),
}

# What counts is the group that is more surely burnt: the trigger alone may burn where other clothes do not, and a
# character in one outfit has too few prompts of the trigger alone to tell.
BURNING = ("trigger", "novel")


@dataclass(frozen=True)
class BootstrapEstimate:
    """A term's value with its bootstrap draws, so that it can be combined with others."""

    value: float
    draws: Array

    def estimate(self) -> Estimate:
        """The value with its interval."""
        return estimate(self.value, self.draws)


@dataclass(frozen=True)
class MetricSet:
    """The terms at one weight; `unmeasurable` says why a term is not among them."""

    fidelity: BootstrapEstimate
    likeness: BootstrapEstimate
    editability: BootstrapEstimate
    bleed: BootstrapEstimate  # on the class word alone
    defects: dict[str, Estimate]
    unmeasurable: dict[str, str] = field(default_factory=dict)

    @property
    def terms(self) -> dict[str, Estimate]:
        """Every measured term by name."""
        own = {name: getattr(self, name).estimate() for name in ("fidelity", "likeness", "editability")}
        return own | self.defects


def measure(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings], pictures: Mapping[EvalPrompt, Images]) -> MetricSet:
    """Every term; fidelity asks for each concept and against its siblings, likeness for the character alone.

    Args:
        scorer: the prepared score.
        rows: (seeds, D) embeddings of each probe's renders.
        pictures: the renders themselves.
    """
    found, missing = _defects(scorer, rows, pictures)
    bleed = class_bleed(scorer, rows)
    return MetricSet(
        fidelity=_fidelity(scorer, rows),
        likeness=_position(scorer, scorer.references.character, scorer.select("trigger"), rows),
        editability=_editability(scorer, rows),
        bleed=bleed,
        defects={"bleed_class": _rate(bleed, scorer.select(CLASS_ONLY)), **found},
        unmeasurable=missing,
    )


def measure_likeness(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> dict[str, Estimate]:
    """The terms that need no prompt to be embedded: fidelity, likeness and class bleed."""
    references = scorer.references
    return {
        "fidelity": _fidelity(scorer, rows).estimate(),
        "likeness": _position(scorer, references.character, scorer.select("trigger"), rows).estimate(),
        "bleed_class": _rate(class_bleed(scorer, rows), scorer.select(CLASS_ONLY)),
    }


def _fidelity(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> BootstrapEstimate:
    """Half the character as such, a quarter each the mean and the worst of its concepts."""
    references = scorer.references
    character = _position(scorer, references.character, scorer.select("trigger"), rows)
    found = [_position(scorer, one, scorer.select("trigger", concept=one.name), rows) for one in references.concepts]
    values, draws = [one.value for one in found], np.stack([one.draws for one in found])
    return BootstrapEstimate(
        0.5 * character.value + 0.25 * float(np.mean(values)) + 0.25 * min(values),
        0.5 * character.draws + 0.25 * draws.mean(0) + 0.25 * draws.min(0),
    )


def _position(
    scorer: Scorer, reference: Reference, probes: list[EvalPrompt], rows: Mapping[EvalPrompt, Embeddings]
) -> BootstrapEstimate:
    rendered = np.stack([reference.passes(rows[p]) for p in probes])
    base = np.stack([reference.passes(scorer.base_embeddings[p]) for p in probes])
    return BootstrapEstimate(*relative_position(rendered, base, reference.real, scorer.settings.n_bootstrap, seed=1))


def class_bleed(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> BootstrapEstimate:
    """How much of the character the class word alone draws, from 0 to 1: drawing it less than the base is no bleed."""
    found = _position(scorer, scorer.references.bleed, scorer.select(CLASS_ONLY), rows)
    return BootstrapEstimate(float(np.clip(found.value, 0, 1)), np.clip(found.draws, 0, 1))


def _rate(bleed: BootstrapEstimate, probes: list[EvalPrompt]) -> Estimate:
    return with_exact_bounds(bleed.estimate(), render_count(probes))


def _editability(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> BootstrapEstimate:
    edited = scorer.select("novel", "style", "people")
    return BootstrapEstimate(
        *editability(
            np.stack([rows[p].pooled for p in edited]),
            np.stack([scorer.base_embeddings[p].pooled for p in edited]),
            np.stack([scorer.text_embeddings[p] for p in edited]),
            scorer.settings.n_bootstrap,
            seed=1,
        )
    )


def _defects(
    scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings], pictures: Mapping[EvalPrompt, Images]
) -> tuple[dict[str, Estimate], dict[str, str]]:
    draws = scorer.settings.n_bootstrap
    found, missing = {}, {}
    for name, groups in OTHER_BLEED.items():
        probes = scorer.select(*groups)
        if probes:
            found[name] = _rate(_position(scorer, scorer.references.bleed, probes, rows), probes)
    concepts, alike = scorer.references.concepts, scorer.references.alike
    if alike:
        missing["concepts"] = f"{scorer.encoder.name} cannot tell {'; '.join(alike)} apart"
    if len(concepts) > 1:
        found["bleed_cross"] = estimate(*defects.cross_bleed(*outfit_matrix(scorer, rows), draws, seed=1))
    else:
        missing["bleed_cross"] = "one concept, nothing to be mixed up"
    asked, plain = scorer.select("trigger"), scorer.select("class_only")
    try:
        found["memorisation"] = defects.memorisation(
            np.concatenate([rows[p].pooled for p in asked]), scorer.references.training
        )
    except ValueError as error:
        missing["memorisation"] = str(error)
    pair = np.stack([rows[p].pooled for p in plain]), np.stack([scorer.base_embeddings[p].pooled for p in plain])
    for name, of in (("spread", defects.spread), ("class_drift", defects.drift)):
        try:
            found[name] = estimate(*of(*pair, draws, seed=1))
        except ValueError as error:
            missing[name] = str(error)
    found["burn"] = max((_burn(scorer, pictures, group) for group in BURNING), key=lambda burn: burn.low)
    return found, missing


def _burn(scorer: Scorer, pictures: Mapping[EvalPrompt, Images], group: str) -> Estimate:
    probes = scorer.select(group)
    rendered, base = (np.concatenate([of[p] for p in probes]) for of in (pictures, scorer.base_renders))
    draws = scorer.settings.n_bootstrap
    return estimate(*defects.burn(rendered, base, scorer.reference_images.all_training, len(probes), draws, seed=1))


def outfit_matrix(scorer: Scorer, rows: Mapping[EvalPrompt, Embeddings]) -> tuple[list[Array], list[Array]]:
    """(..., concepts) how surely each concept's renders, and its held-out pictures, pass for every concept."""
    concepts = scorer.references.concepts

    def passes(seen: Embeddings) -> Array:
        return np.stack([one.passes(seen) for one in concepts], axis=-1)

    asked = [[passes(rows[p]) for p in scorer.select("trigger", concept=concept.name)] for concept in concepts]
    return [np.stack(own) for own in asked], [passes(one.validation) for one in concepts]

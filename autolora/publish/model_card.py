"""The model card of an exported LoRA: what it shows, how well it scores, and its weaknesses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.families import family_of
from autolora.export.metadata import tag_frequency
from autolora.progress import Bars
from autolora.publish.gallery import GalleryEntry, SampleRenderer, render_matrix
from autolora.report.formatting import format_estimate
from autolora.report.model_card import CardConcept, CardSample, ModelCard, base_licence, write_model_card
from autolora.report.schema import OutfitMatrix
from autolora.scoring.intervals import Estimate
from autolora.scoring.metrics import METRICS, metric_label

MEANINGS = {
    "score": "fidelity and editability together, minus bleed above its limit",
    **{metric.name: metric.meaning for metric in METRICS if metric.meaning},
}
MIXED = 0.1  # share of an outfit's renders that pass for another outfit from which the card names it
TAGS = 12


def write_card(
    renderer: SampleRenderer, best: GalleryEntry, result: CheckpointResult, file: Path, matrix: OutfitMatrix | None
) -> None:
    """Write the model card beside an exported file, with its sample images.

    Args:
        renderer: the samples.
        best: the exported checkpoint.
        result: its scores.
        file: the exported file.
        matrix: how often its outfits pass for one another, where that was measured.

    Raises:
        StorageError: the folder cannot be written.
    """
    images = renderer.at(best, result.weight)
    samples = tuple(
        CardSample(sample.prompt, sample.seed, result.weight, image, f"samples/{number}.png")
        for number, (sample, image) in enumerate(zip(renderer.samples, images, strict=True), 1)
    )
    card = model_card(renderer.session, best.trial_folder, result, file)
    weaknesses = known_weaknesses(result, renderer.session.scoring.max_bleed, matrix)
    write_model_card(replace(card, samples=samples, weaknesses=weaknesses), file.parent)


def write_card_alone(
    session: Session, trial_folder: TrialFolder, result: CheckpointResult, file: Path, bars: Bars
) -> None:
    """Write the model card of a single training run, which has no report; its images are rendered here.

    Raises:
        StorageError: the folder cannot be written.
    """
    renderer, best = SampleRenderer.open(session, bars), GalleryEntry.best(trial_folder, result)
    write_card(renderer, best, result, file, render_matrix(renderer, best))


def model_card(session: Session, trial_folder: TrialFolder, result: CheckpointResult, file: Path) -> ModelCard:
    """The card of an exported checkpoint, without sample images and weaknesses."""
    dataset, model, run = session.context.dataset, session.context.model, trial_folder.run
    captioned = run.with_captions(dataset)
    tags: dict[str, int] = {}
    for concept in captioned.concepts:
        for tag, count in tag_frequency(concept).items():
            tags[tag] = tags.get(tag, 0) + count
    terms = {"score": result.score, **result.terms} if result.score else result.terms
    epochs = result.step / run.images_per_epoch(dataset)
    images_per_epoch = zip(dataset.concepts, run.images_by_concept(dataset), strict=True)
    return ModelCard(
        title=dataset.trigger,
        file=file.name,
        verdict=result.verdict,
        activation_text=", ".join(dict.fromkeys([dataset.class_word, dataset.trigger])),
        triggers={"the character": dataset.trigger, **{c.name: c.trigger for c in dataset.concepts}},
        weight=result.weight,
        base=f"{model.name} (weights {model.base_hash})",
        family=family_of(model).spec,
        licence=base_licence(model.source),
        samples=(),
        scorecard=tuple((metric_label(n), Estimate(**terms[n]), text) for n, text in MEANINGS.items() if n in terms),
        by_weight={w: {n: Estimate(**term) for n, term in terms.items()} for w, terms in result.sweep.items()},
        weaknesses=(),
        asked="likeness, editability, bleed on the class word, copies, burnt colours",
        concepts=tuple(
            CardConcept(concept.name, concept.trigger, len(concept.pictures), round(images * epochs))
            for concept, images in images_per_epoch
        ),
        validation=len(dataset.validation),
        resolution=model.resolution,
        tags=tuple(sorted(tags, key=lambda tag: (-tags[tag], tag))[:TAGS]),
        recipe=run.name,
        step=result.step,
    )


def known_weaknesses(result: CheckpointResult, max_bleed: float, matrix: OutfitMatrix | None) -> tuple[str, ...]:
    """What is known against a checkpoint, the worst first."""
    weaknesses = [f"breaks the limit on {metric_label(name)}" for name in result.broken]
    bleeding = [w for w, terms in result.sweep.items() if terms["bleed_class"]["high"] > max_bleed]
    if bleeding:
        lowest = min(bleeding, key=float)
        bleed = format_estimate(Estimate(**result.sweep[lowest]["bleed_class"]))
        weaknesses.append(f"from weight {lowest} on, bleed may be above {max_bleed:.0%}: {bleed}")
    bleed_by_prompt = {prompt: share for prompt, share in result.bleed_by_prompt.items() if share}
    weaknesses += [
        f"`{prompt}` shows the character in {share:.0%} of renders" for prompt, share in bleed_by_prompt.items()
    ]
    if matrix:
        for row, name in enumerate(matrix.names):
            for column, other in enumerate(matrix.names):
                share = matrix.shares[row][column]
                if row != column and share.low > MIXED:
                    weaknesses.append(f"of renders with {name}, {share.value:.0%} pass for {other}")
    weaknesses += [f"{metric_label(name)} is unknown: {reason}" for name, reason in result.unmeasurable.items()]
    return tuple(weaknesses)

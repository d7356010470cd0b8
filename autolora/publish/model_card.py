"""What the model card of an export says."""

from __future__ import annotations

from pathlib import Path

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.families import family_of
from autolora.export.metadata import tag_frequency
from autolora.progress import Bars
from autolora.publish.gallery import GalleryEntry, SampleRenderer, gallery, matrix
from autolora.report.charts import format_estimate
from autolora.report.model_card import CardConcept, CardSample, ModelCard, base_licence, write_model_card
from autolora.report.schema import Gallery, OutfitMatrix
from autolora.scoring.intervals import Estimate

MEANINGS = {
    "score": "fidelity and editability together, less bleed above its limit",
    "likeness": "renders with the trigger that pass for the character; 1 = as many as of its real pictures",
    "fidelity": "the same, and each outfit told from the others",
    "editability": "how well prompts for other clothes and styles are followed; 1 = as by the base model",
    "bleed_class": "renders of the class word alone that pass for the character; 0 is wanted",
    "bleed_context": "the same of the class word in some context",
    "bleed_cross": "renders of one outfit that show another, beyond what its real pictures do",
    "memorisation": "renders as near to a training picture as those are to one another",
    "spread": "how much renders of the class word differ; 1 = as the base model's",
}
MIXED = 0.1  # share of an outfit's renders that pass for another from which the card says so
TAGS = 12


def write_card(
    session: Session,
    record: TrialFolder,
    best: CheckpointResult,
    file: Path,
    shown: Gallery,
    mixed: OutfitMatrix | None,
) -> None:
    """Write the model card beside an export, with what a report shows of it.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_model_card(model_card(session, record, best, file, shown, mixed), file.parent)


def write_card_alone(session: Session, record: TrialFolder, best: CheckpointResult, file: Path, bars: Bars) -> None:
    """The same where there is no report, which would have made the pictures."""
    shelf, one = (
        SampleRenderer.open(session, bars),
        GalleryEntry("best", record, best.step, record.load(best), best.weight),
    )
    write_card(session, record, best, file, gallery(shelf, [one]), matrix(shelf, one))


def model_card(
    session: Session,
    record: TrialFolder,
    best: CheckpointResult,
    file: Path,
    shown: Gallery,
    mixed: OutfitMatrix | None,
) -> ModelCard:
    """The card of an exported checkpoint."""
    dataset, model, run = session.context.dataset, session.context.model, record.run
    captioned = run.with_captions(dataset)
    tags: dict[str, int] = {}
    for concept in captioned.concepts:
        for tag, count in tag_frequency(concept).items():
            tags[tag] = tags.get(tag, 0) + count
    terms = {"score": best.score, **best.terms} if best.score else best.terms
    steps = zip(dataset.concepts, run.images_by_concept(dataset), strict=True)
    return ModelCard(
        title=dataset.trigger,
        file=file.name,
        verdict=best.verdict,
        activation_text=", ".join(dict.fromkeys([dataset.class_word, dataset.trigger])),
        triggers={"the character": dataset.trigger, **{c.name: c.trigger for c in dataset.concepts}},
        weight=best.weight,
        base=f"{model.name} (weights {model.base_hash})",
        family=family_of(model).spec,
        licence=base_licence(model.source),
        samples=_samples(shown, best.weight),
        scorecard=tuple((_plain(n), Estimate(**terms[n]), words) for n, words in MEANINGS.items() if n in terms),
        by_weight={w: {n: Estimate(**term) for n, term in own.items()} for w, own in best.sweep.items()},
        weaknesses=weaknesses(best, session.scoring.max_bleed, mixed),
        asked="likeness, editability, bleed on the class word, copies, burnt colours",
        concepts=tuple(CardConcept(c.name, c.trigger, len(c.pictures), round(n * _epochs(record, best, session)))
                       for c, n in steps),
        validation=len(dataset.validation),
        resolution=model.resolution,
        tags=tuple(sorted(tags, key=lambda tag: (-tags[tag], tag))[:TAGS]),
        recipe=run.name,
        step=best.step,
    )  # fmt: skip


def weaknesses(best: CheckpointResult, max_bleed: float, matrix: OutfitMatrix | None) -> tuple[str, ...]:
    """What is known against a checkpoint, the gravest first."""
    found = [f"breaks the limit on {_plain(name)}" for name in best.broken]
    bleeding = [w for w, own in best.sweep.items() if own["bleed_class"]["high"] > max_bleed]
    if bleeding:
        low = min(bleeding, key=float)
        shown = format_estimate(Estimate(**best.sweep[low]["bleed_class"]))
        found.append(f"from weight {low} on more than {max_bleed:.0%} bleed cannot be ruled out: {shown}")
    leaks = {prompt: share for prompt, share in best.bleed_by_prompt.items() if share}
    found += [f"`{prompt}` shows the character in {share:.0%} of renders" for prompt, share in leaks.items()]
    if matrix:
        for row, name in enumerate(matrix.names):
            for column, other in enumerate(matrix.names):
                share = matrix.shares[row][column]
                if row != column and share.low > MIXED:
                    found.append(f"asked for {name}, {share.value:.0%} of renders pass for {other}")
    found += [f"{_plain(name)} is not known: {why}" for name, why in best.unmeasurable.items()]
    return tuple(found)


def _plain(name: str) -> str:
    return {"bleed_class": "bleed"}.get(name, name.replace("_", " "))


def _epochs(record: TrialFolder, best: CheckpointResult, session: Session) -> float:
    return best.step / record.run.images_per_epoch(session.context.dataset)


def _samples(gallery: Gallery, weight: float) -> tuple[CardSample, ...]:
    images = gallery.columns[-1].by_weight[weight]
    return tuple(
        CardSample(sample.prompt, sample.seed, weight, image, f"samples/{number}.png")
        for number, (sample, image) in enumerate(zip(gallery.samples, images, strict=True), 1)
    )

"""Prepares everything a score compares with, once for a study: references, base renders and margins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from autolora.adapters.lora import AdapterSet
from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset
from autolora.data.sources import Picture
from autolora.errors import StudyError
from autolora.models.base import BaseModel
from autolora.sampling import BaseRenders, Pictures
from autolora.scoring.encoders import Encoder
from autolora.scoring.intervals import Array, bootstrap_means
from autolora.scoring.probes import ALL_GROUPS, Probe, build_probes, strip_triggers
from autolora.scoring.settings import ScoringSettings
from autolora.scoring.terms import Margin, cross_fitted_auc, fit_margin
from autolora.train.batches import LatentCache

MINIMUM_AUC = 0.9
FRESH_SEEDS = 100_000  # between the seeds of the search and of the finals


@dataclass(frozen=True)
class Reference:
    """How one concept is told apart: its margin and where held-out pictures lie on it."""

    name: str
    margin: Margin
    real: Array  # (n,) margins of held-out pictures
    held_out: Array  # (n, D) their embeddings
    auc: float


@dataclass(frozen=True)
class Scorer:
    """A prepared score: probes with their base embeddings, and the references of each concept."""

    settings: ScoringSettings
    encoder: Encoder
    probes: tuple[Probe, ...]
    base: dict[Probe, Array]  # (seeds, D) base embeddings of each probe
    base_pictures: dict[Probe, Pictures]
    texts: dict[Probe, Array]  # (D,) embeddings of the prompts without triggers
    concepts: tuple[Reference, ...]
    character: Reference
    training: Array  # (n, D) embeddings of the training pictures as the VAE keeps them
    references: Pictures  # (n, H, W, 3) those pictures

    def of(self, *groups: str, concept: str | None = None) -> list[Probe]:
        """The probes of some groups, and of one concept where it is given."""
        return [p for p in self.probes if p.group in groups and concept in (None, p.concept)]

    @property
    def renders(self) -> int:
        """How many pictures a checkpoint is asked for."""
        return sum(len(probe.seeds) for probe in self.probes) * len(self.settings.weights)


def prepare(
    model: BaseModel,
    dataset: Dataset,
    settings: ScoringSettings,
    encoder: Encoder,
    renders: BaseRenders,
    latents: LatentCache,
    advance: Callable[[int], None] | None = None,
) -> Scorer:
    """Render what is missing, embed it and fit the margins.

    Raises:
        StudyError: the encoder cannot tell a concept from the base model's pictures, so no score would mean anything.
    """
    probes = build_probes(dataset, settings)
    base, base_pictures = _base_of(probes, renders, encoder, None, advance)
    contrast = encoder.images(renders.render(contrast_shots(dataset, settings), advance))
    references = decode(model, latents, dataset.pictures)
    training = encoder.images(references)
    owners = np.array([c.name for c in dataset.concepts for _ in c.pictures])
    train = {c.name: training[owners == c.name] for c in dataset.concepts}
    held_out = {
        c.name: encoder.images(decode(model, latents, [p for p in dataset.held_out if p.concept == c.name]))
        for c in dataset.concepts
    }
    concepts = []
    for name, positives in train.items():
        siblings = [rows for other, rows in train.items() if other != name]
        concepts.append(_reference(name, positives, np.concatenate([contrast, *siblings]), held_out[name], settings))
    every_held_out = np.concatenate(list(held_out.values()))
    return Scorer(
        settings=settings,
        encoder=encoder,
        probes=probes,
        base=base,
        base_pictures=base_pictures,
        texts=_texts(probes, dataset, encoder),
        concepts=tuple(concepts),
        character=_reference(dataset.trigger, training, contrast, every_held_out, settings),
        training=training,
        references=references,
    )


def with_fresh_probes(
    scorer: Scorer,
    dataset: Dataset,
    renders: BaseRenders,
    adapter: AdapterSet,
    repeats: int,
    advance: Callable[[int], None] | None = None,
) -> Scorer:
    """The same margins, but all groups of probes, at other seeds, `repeats` times as many."""
    old = scorer.settings
    settings = replace(
        old,
        first_seed=old.first_seed + FRESH_SEEDS,
        trigger_seeds=old.trigger_seeds * repeats,
        class_seeds=old.class_seeds * repeats,
    )
    probes = build_probes(dataset, settings, ALL_GROUPS)
    base, base_pictures = _base_of(probes, renders, scorer.encoder, adapter, advance)
    return replace(scorer, settings=settings, probes=probes, base=base, base_pictures=base_pictures,
                   texts=_texts(probes, dataset, scorer.encoder))  # fmt: skip


def _texts(probes: Sequence[Probe], dataset: Dataset, encoder: Encoder) -> dict[Probe, Array]:
    return dict(zip(probes, encoder.texts([strip_triggers(p.prompt, dataset) for p in probes]), strict=True))


def _base_of(
    probes: Sequence[Probe],
    renders: BaseRenders,
    encoder: Encoder,
    adapter: AdapterSet | None,
    advance: Callable[[int], None] | None,
) -> tuple[dict[Probe, Array], dict[Probe, Pictures]]:
    """The base model's pictures of every probe, and their embeddings."""
    pictures = renders.render([(probe.base_prompt, seed) for probe in probes for seed in probe.seeds], advance, adapter)
    embedded = encoder.images(pictures)
    ends = np.cumsum([len(probe.seeds) for probe in probes])[:-1]
    base = dict(zip(probes, np.split(embedded, ends), strict=True))
    return base, dict(zip(probes, np.split(pictures, ends), strict=True))


def contrast_shots(dataset: Dataset, settings: ScoringSettings) -> list[tuple[str, int]]:
    """What the margins are fitted against: the training captions and the class-only prompts, drawn by the base model.

    Their seeds lie apart from the probes', so that no picture is both fitted on and judged.
    """
    captions = [strip_triggers(picture.caption, dataset) for picture in dataset.pictures]
    plain = [join_tags([dataset.class_word, *split_tags(context)]) for context in ("", *settings.class_contexts)]
    turns = (captions, plain)
    return [
        (turns[i % 2][i // 2 % len(turns[i % 2])], settings.first_seed + 500_000 + i) for i in range(settings.contrast)
    ]


@torch.inference_mode()
def decode(model: BaseModel, latents: LatentCache, pictures: Sequence[Picture]) -> Pictures:
    """(N, H, W, 3) pictures passed through the VAE, else a margin would learn `drawn or decoded`."""
    found = []
    for start in range(0, len(pictures), 16):
        pixels = model.decode_latents(latents.latents(pictures[start : start + 16]))
        found.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(found)


def _reference(name: str, positives: Array, negatives: Array, held_out: Array, settings: ScoringSettings) -> Reference:
    auc = cross_fitted_auc(positives, negatives)
    margin = fit_margin(positives, negatives)
    real = margin(held_out)
    low = np.quantile(bootstrap_means(real[:, None], settings.bootstrap, 0), 0.025)
    if auc < MINIMUM_AUC or low <= margin(negatives).mean():
        raise StudyError(
            f"`{name}` is unmeasurable: {settings.encoder} tells its pictures from the base model's with AUC {auc:.2f} "
            f"(at least {MINIMUM_AUC} is needed); add pictures, or choose another scoring.encoder"
        )
    return Reference(name, margin, real, held_out, auc)

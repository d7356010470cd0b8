"""Prepares everything a score compares with, once for a study: references, base renders and margins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from autolora.adapters.adapter_set import AdapterSet
from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset, strip_triggers
from autolora.models.base import BaseModel
from autolora.models.settings import RenderSettings
from autolora.sampling import BaseRenders, Images
from autolora.scoring.encoders import Embeddings, Encoder
from autolora.scoring.eval_prompts import ALL_GROUPS, EvalPrompt, build_eval_prompts, in_groups, render_count
from autolora.scoring.intervals import Array
from autolora.scoring.references import ReferenceImages, References, decode, fit_references
from autolora.scoring.settings import ScoringSettings
from autolora.train.batches import LatentCache

K = TypeVar("K")
FRESH_SEEDS = 100_000  # between the seeds of the search and of the finals


@dataclass(frozen=True)
class Scorer:
    """A prepared score: probes with their base embeddings, and the references of each concept."""

    settings: ScoringSettings
    render_settings: RenderSettings  # how its base pictures were rendered, and every checkpoint's must be
    encoder: Encoder
    prompts: tuple[EvalPrompt, ...]
    base_embeddings: dict[EvalPrompt, Embeddings]  # of the base model's pictures of each probe, one a seed
    base_renders: dict[EvalPrompt, Images]
    text_embeddings: dict[EvalPrompt, Array]  # (D,) embeddings of the prompts without triggers
    reference_images: ReferenceImages
    references: References
    second: Scorer | None = None  # the same as another encoder sees it

    def select(self, *groups: str, concept: str | None = None) -> list[EvalPrompt]:
        """The probes of some groups, and of one concept where it is given."""
        return in_groups(self.prompts, *groups, concept=concept)

    def at_weights(self, *weights: float) -> Scorer:
        """The same at other weights."""
        return replace(self, settings=replace(self.settings, weights=weights))

    def only(self, *groups: str) -> Scorer:
        """The same with the probes of some groups."""
        return replace(self, prompts=tuple(self.select(*groups)), second=self.second and self.second.only(*groups))

    @property
    def num_renders(self) -> int:
        """How many pictures a checkpoint is asked for."""
        return render_count(self.prompts) * len(self.settings.weights)


def build_scorer(
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
        Unmeasurable: the encoder cannot tell a concept from the base model's pictures.
    """
    probes = build_eval_prompts(dataset, settings)
    base, base_renders = _base_of(probes, renders, encoder, None, advance)
    material = ReferenceImages(
        trigger=dataset.trigger,
        training={c.name: decode(model, latents, c.pictures, renders.side) for c in dataset.concepts},
        validation={
            c.name: decode(model, latents, [p for p in dataset.validation if p.concept == c.name], renders.side)
            for c in dataset.concepts
        },
        negatives=renders.render(negative_requests(dataset, settings), advance),
    )
    return Scorer(
        settings=settings,
        render_settings=renders.settings,
        encoder=encoder,
        prompts=probes,
        base_embeddings=base,
        base_renders=base_renders,
        text_embeddings=_texts(probes, dataset, encoder),
        reference_images=material,
        references=fit_references(material, encoder, settings.n_bootstrap),
    )


def with_fresh_prompts(
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
        seed=old.seed + FRESH_SEEDS,
        seeds_per_trigger_prompt=old.seeds_per_trigger_prompt * repeats,
        seeds_per_class_prompt=old.seeds_per_class_prompt * repeats,
    )
    probes = build_eval_prompts(dataset, settings, ALL_GROUPS)
    base, base_renders = _base_of(probes, renders, scorer.encoder, adapter, advance)
    return replace(
        scorer,
        settings=settings,
        render_settings=renders.settings,
        prompts=probes,
        base_embeddings=base,
        base_renders=base_renders,
        text_embeddings=_texts(probes, dataset, scorer.encoder),
    )


def _texts(probes: Sequence[EvalPrompt], dataset: Dataset, encoder: Encoder) -> dict[EvalPrompt, Array]:
    return dict(zip(probes, encoder.embed_texts([strip_triggers(p.prompt, dataset) for p in probes]), strict=True))


def _base_of(
    probes: Sequence[EvalPrompt],
    renders: BaseRenders,
    encoder: Encoder,
    adapter: AdapterSet | None,
    advance: Callable[[int], None] | None,
) -> tuple[dict[EvalPrompt, Embeddings], dict[EvalPrompt, Images]]:
    """The base model's pictures of every probe, and their embeddings."""
    pictures = renders.render([(probe.base_prompt, seed) for probe in probes for seed in probe.seeds], advance, adapter)
    ends = np.cumsum([len(probe.seeds) for probe in probes])[:-1]
    by_probe = dict(zip(probes, np.split(pictures, ends), strict=True))
    return embed_each(encoder, by_probe), by_probe


def with_encoder(scorer: Scorer, encoder: Encoder) -> Scorer:
    """The same probes and pictures as another encoder sees them; prompts are not embedded again.

    Raises:
        Unmeasurable: that encoder cannot tell a concept from the base model's pictures.
    """
    base = embed_each(encoder, scorer.base_renders)
    references = fit_references(scorer.reference_images, encoder, scorer.settings.n_bootstrap)
    return replace(scorer, encoder=encoder, base_embeddings=base, references=references, second=None)


def embed_each(encoder: Encoder, pictures: Mapping[K, Images]) -> dict[K, Embeddings]:
    """Views of each key's pictures, in one pass."""
    seen = encoder.embed(np.concatenate(list(pictures.values())))
    return dict(zip(pictures, seen.split([len(own) for own in pictures.values()]), strict=True))


def negative_requests(dataset: Dataset, settings: ScoringSettings) -> list[tuple[str, int]]:
    """What the margins are fitted against: the training captions and the class-only prompts, drawn by the base model.

    Their seeds lie apart from the probes', so that no picture is both fitted on and judged.
    """
    captions = [strip_triggers(picture.caption, dataset) for picture in dataset.pictures]
    plain = [join_tags([dataset.class_word, *split_tags(context)]) for context in ("", *settings.class_prompts)]
    turns = (captions, plain)
    return [
        (turns[i % 2][i // 2 % len(turns[i % 2])], settings.seed + 500_000 + i)
        for i in range(settings.num_negative_renders)
    ]

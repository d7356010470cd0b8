"""Prepares what a score compares renders with, once per study: reference images, base renders and thresholds."""

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
from autolora.scoring.embeddings import Embeddings
from autolora.scoring.encoders import Encoder
from autolora.scoring.eval_prompts import ALL_GROUPS, EvalPrompt, build_eval_prompts, in_groups, render_count
from autolora.scoring.intervals import Array
from autolora.scoring.references import ReferenceImages, References, decode, fit_references
from autolora.scoring.settings import ScoringSettings
from autolora.train.caches import LatentCache

K = TypeVar("K")
FINALS_SEED_OFFSET = 100_000  # between the seeds of the search and those of the finals
NEGATIVES_SEED_OFFSET = 500_000  # between the seeds of the search and those of the negatives


@dataclass(frozen=True)
class Scorer:
    """A prepared score: evaluation prompts with their base renders, and the references of each concept."""

    settings: ScoringSettings
    render_settings: RenderSettings  # of the base renders; renders of checkpoints must use the same
    encoder: Encoder
    prompts: tuple[EvalPrompt, ...]
    base_embeddings: dict[EvalPrompt, Embeddings]  # of the base renders, one row per seed
    base_renders: dict[EvalPrompt, Images]
    text_embeddings: dict[EvalPrompt, Array]  # (D,), of the prompts without triggers
    reference_images: ReferenceImages
    references: References
    second: Scorer | None = None  # the same score with the second encoder

    def select(self, *groups: str, concept: str | None = None) -> list[EvalPrompt]:
        """Return the prompts of some groups, and of one concept if it is given."""
        return in_groups(self.prompts, *groups, concept=concept)

    def at_weights(self, *weights: float) -> Scorer:
        """Return the scorer with other LoRA weights."""
        return replace(self, settings=replace(self.settings, weights=weights))

    def only(self, *groups: str) -> Scorer:
        """Return the scorer with only the prompts of some groups."""
        return replace(self, prompts=tuple(self.select(*groups)), second=self.second and self.second.only(*groups))

    @property
    def num_renders(self) -> int:
        """The number of renders per checkpoint."""
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
    """Render what is not in the cache, embed it and fit the references.

    Raises:
        Unmeasurable: the encoder cannot tell the character from the base model's renders.
    """
    prompts = build_eval_prompts(dataset, settings)
    base_embeddings, base_renders = _render_base(prompts, renders, encoder, None, advance)
    reference_images = ReferenceImages(
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
        prompts=prompts,
        base_embeddings=base_embeddings,
        base_renders=base_renders,
        text_embeddings=_embed_prompts(prompts, dataset, encoder),
        reference_images=reference_images,
        references=fit_references(reference_images, encoder, settings.n_bootstrap),
    )


def with_fresh_prompts(
    scorer: Scorer,
    dataset: Dataset,
    renders: BaseRenders,
    adapter: AdapterSet,
    repeats: int,
    advance: Callable[[int], None] | None = None,
) -> Scorer:
    """Return the scorer for the finals: the same references, all groups of prompts and other seeds.

    Args:
        scorer: the search's scorer.
        dataset: the dataset that prompts are built from.
        renders: the cache of base renders.
        adapter: the adapter that is attached to the model.
        repeats: the factor on the number of seeds per prompt.
        advance: is called with the number of base renders that are ready.
    """
    search = scorer.settings
    settings = replace(
        search,
        seed=search.seed + FINALS_SEED_OFFSET,
        seeds_per_trigger_prompt=search.seeds_per_trigger_prompt * repeats,
        seeds_per_class_prompt=search.seeds_per_class_prompt * repeats,
    )
    prompts = build_eval_prompts(dataset, settings, ALL_GROUPS)
    base_embeddings, base_renders = _render_base(prompts, renders, scorer.encoder, adapter, advance)
    return replace(
        scorer,
        settings=settings,
        render_settings=renders.settings,
        prompts=prompts,
        base_embeddings=base_embeddings,
        base_renders=base_renders,
        text_embeddings=_embed_prompts(prompts, dataset, scorer.encoder),
    )


def _embed_prompts(prompts: Sequence[EvalPrompt], dataset: Dataset, encoder: Encoder) -> dict[EvalPrompt, Array]:
    """Embed the prompts without triggers."""
    return dict(zip(prompts, encoder.embed_texts([strip_triggers(p.prompt, dataset) for p in prompts]), strict=True))


def _render_base(
    prompts: Sequence[EvalPrompt],
    renders: BaseRenders,
    encoder: Encoder,
    adapter: AdapterSet | None,
    advance: Callable[[int], None] | None,
) -> tuple[dict[EvalPrompt, Embeddings], dict[EvalPrompt, Images]]:
    """Render the base model at every prompt; return the embeddings and the images."""
    images = renders.render(
        [(prompt.base_prompt, seed) for prompt in prompts for seed in prompt.seeds], advance, adapter
    )
    ends = np.cumsum([len(prompt.seeds) for prompt in prompts])[:-1]
    by_prompt = dict(zip(prompts, np.split(images, ends), strict=True))
    return embed_each(encoder, by_prompt), by_prompt


def with_encoder(scorer: Scorer, encoder: Encoder) -> Scorer:
    """Return the scorer with another encoder for the same renders; prompts are not embedded again.

    Raises:
        Unmeasurable: that encoder cannot tell the character from the base model's renders.
    """
    embeddings = embed_each(encoder, scorer.base_renders)
    references = fit_references(scorer.reference_images, encoder, scorer.settings.n_bootstrap)
    return replace(scorer, encoder=encoder, base_embeddings=embeddings, references=references, second=None)


def embed_each(encoder: Encoder, images: Mapping[K, Images]) -> dict[K, Embeddings]:
    """Embed the images of every key in one call."""
    embeddings = encoder.embed(np.concatenate(list(images.values())))
    return dict(zip(images, embeddings.split([len(part) for part in images.values()]), strict=True))


def negative_requests(dataset: Dataset, settings: ScoringSettings) -> list[tuple[str, int]]:
    """Return prompts and seeds of the base renders that the discriminants are fitted against.

    The prompts are training captions without triggers and class-word prompts, in turn. Their seeds differ from the
    evaluation prompts', so that no image is used for both fitting and scoring.
    """
    captions = [strip_triggers(picture.caption, dataset) for picture in dataset.pictures]
    class_prompts = [join_tags([dataset.class_word, *split_tags(tags)]) for tags in ("", *settings.class_prompts)]
    sources = (captions, class_prompts)
    return [
        (sources[i % 2][i // 2 % len(sources[i % 2])], settings.seed + NEGATIVES_SEED_OFFSET + i)
        for i in range(settings.num_negative_renders)
    ]

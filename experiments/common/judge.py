"""The judge of the synthetic test world: counts by the attribute classifier how often images show a character.

Nothing that autolora chooses by is part of it: the attribute classifier reads attributes and marks from an image, and
it never took part in tuning recipes, scores or limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from scipy.stats import binomtest

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.base import State
from autolora.adapters.read import lora_of
from autolora.models.base import BaseModel
from autolora.models.settings import RenderSettings
from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.look import Character, parse_prompt
from autolora.sampling import Images, RenderRequest, render
from experiments.common.seeds import BANK_RENDERS, QUICKSTART_RENDERS, evaluation_character
from experiments.common.training import settings_of

WEIGHTS = (0.7, 1.0)  # LoRA weights that are judged
STRIP_IMAGES = 6  # images of each kind in a strip


@dataclass(frozen=True)
class Rate:
    """A number of hits among a number of images."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """The hits as a share of the images."""
        return self.hits / self.count

    def text(self) -> str:
        """Return the share with its 95% interval by Wilson's method, such as `71% (64%-77%)`."""
        interval = binomtest(self.hits, self.count).proportion_ci(method="wilson")
        return f"{self.share:.0%} ({interval.low:.0%}-{interval.high:.0%})"


@dataclass(frozen=True)
class Judge:
    """Renders prompts with the LoRA in an adapter and counts the images that show the character."""

    model: BaseModel
    adapter: AdapterSet  # the LoRA in its slot 0 is judged
    character: Character
    settings: RenderSettings
    renders: int  # per rate
    first_seed: int  # of the renders; every image has the next seed
    classifier: AttributeClassifier = field(default_factory=AttributeClassifier)

    def prompts(self, kind: str, trigger: str | None = None) -> list[str]:
        """Return the prompts of a kind.

        Args:
            kind: `class`, the class word alone, or `trigger`, the class word with the main trigger and each outfit's
                trigger in turn.
            trigger: the main trigger; None: the character's own.
        """
        class_word = self.character.traits["count"]
        if kind == "class":
            return [class_word] * self.renders
        outfits = self.character.outfits
        with_trigger = [f"{class_word}, {trigger or self.character.trigger}, {outfit.trigger}" for outfit in outfits]
        return [with_trigger[i % len(with_trigger)] for i in range(self.renders)]

    def images(self, prompts: Sequence[str], weight: float = 1.0) -> Images:
        """Render the prompts, each at a seed of its own."""
        requests = [RenderRequest(prompt, self.first_seed + i, weight) for i, prompt in enumerate(prompts)]
        return render(self.model, requests, self.settings, self.adapter)

    def rate(self, kind: str, weight: float = 1.0, trigger: str | None = None) -> Rate:
        """Count the images of a kind of prompt that show the character; a LoRA weight of 0 judges the base model."""
        hits = self.classifier.shows(self.images(self.prompts(kind, trigger), weight), self.character)
        return Rate(int(hits.sum()), len(hits))

    def strip(self, weight: float = 1.0) -> Images:
        """Render a row of images, (height, width, 3): six of the class word alone, then six with the trigger."""
        prompts = [(self.prompts(kind)[i], i) for kind in ("class", "trigger") for i in range(STRIP_IMAGES)]
        requests = [RenderRequest(prompt, self.first_seed + i, weight) for prompt, i in prompts]
        return np.concatenate(list(render(self.model, requests, self.settings, self.adapter)), axis=1)


def attribute_figures(judge: Judge, tags: Sequence[str], weight: float) -> dict[str, float]:
    """Return the figures of the LoRA in the judge's adapter, over all renders and over the two halves of them.

    The figures are `likeness`, the share of images with the trigger that show the character; `accuracy`, the share of
    prompted attributes that are shown in prompts with the trigger and `tags`; `bleed`, the share of images of the
    class word alone that show the character. Their names begin with `oracle_`, as in the stored results; those of the
    halves end in `_a` and `_b`.
    """
    character = judge.character
    lead = f"{character.traits['count']}, {character.trigger}"
    chosen = [tags[i % len(tags)] for i in range(judge.renders)]
    by_figure = {"likeness": judge.prompts("trigger"), "accuracy": [f"{lead}, {tag}" for tag in chosen]}
    by_figure["bleed"] = judge.prompts("class")
    figures: dict[str, float] = {}
    for name, prompts in by_figure.items():
        images = judge.images(prompts, weight)
        halves = {"": slice(None), "_a": slice(0, None, 2), "_b": slice(1, None, 2)}
        for half, part in halves.items():
            if name == "accuracy":
                by_tag = judge.classifier.accuracy(images[part], [parse_prompt(tag) for tag in chosen[part]])
                figures[f"oracle_{name}{half}"] = float(np.mean(list(by_tag.values())))
            else:
                figures[f"oracle_{name}{half}"] = float(judge.classifier.shows(images[part], character).mean())
    return figures


def judge_lora(
    state: State,
    seed: int,
    model: BaseModel,
    renders: int,
    search_steps: bool = False,
    first_seed: int = BANK_RENDERS,
) -> tuple[dict[str, float], Image.Image]:
    """Return the figures of a LoRA by `NAME@WEIGHT`, and a strip of its images at LoRA weight 1.

    Args:
        state: the LoRA.
        seed: the seed of the character.
        model: the base model; no adapter may be attached to it.
        renders: the number of renders per rate and weight.
        search_steps: render in the few denoising steps of a search, as the bank does.
        first_seed: the first seed of the renders.
    """
    settings = settings_of().model.render
    tags = settings_of(study="quickstart").scoring.outfit_prompts
    adapter = attach(model.modules, lora_of(state))
    adapter.start(0, lora_of(state), torch.Generator().manual_seed(0))
    adapter.load(state)
    character = evaluation_character(seed)
    judge = Judge(model, adapter, character, settings.search if search_steps else settings, renders, first_seed)
    figures: dict[str, float] = {}
    for weight in WEIGHTS:
        figures |= {f"{name}@{weight:g}": value for name, value in attribute_figures(judge, tags, weight).items()}
    strip = replace(judge, settings=settings, first_seed=QUICKSTART_RENDERS).strip()
    adapter.detach()
    return figures, Image.fromarray(strip)

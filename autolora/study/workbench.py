"""Everything a process prepares once and all its trials share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.data.captions import join_tags, split_tags
from autolora.data.concepts import Dataset, load_dataset, strip_triggers
from autolora.data.sources import Picture
from autolora.errors import StudyError, Unmeasurable
from autolora.models import load_model
from autolora.models.base import RenderSettings
from autolora.progress import Bars
from autolora.sampling import BaseRenders
from autolora.scoring.encoders import load_encoder
from autolora.scoring.probes import ALL_GROUPS, Probe, build_probes, of_groups
from autolora.scoring.scorecard import Rendered, Scorecard, render_probes, score
from autolora.scoring.scorer import Scorer, prepare
from autolora.scoring.settings import ScoringSettings
from autolora.study.ladder import climb
from autolora.study.trial import Point, unmeasured_point, unrendered
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import Bench
from autolora.train.loss import validation_losses
from autolora.train.run import Run


@dataclass(frozen=True)
class Workbench:
    """The frozen model with its adapter, the pictures, the caches and the prepared score."""

    bench: Bench
    renders: BaseRenders
    render_settings: RenderSettings
    scoring: ScoringSettings
    probes: tuple[Probe, ...]  # of all groups
    scorer: Scorer | None  # None where nothing can be measured
    unmeasured: str  # why; empty where it can
    base_losses: tuple[float, ...]  # the base model's validation losses by timestep bucket

    def of(self, *groups: str) -> list[Probe]:
        """The probes of some groups."""
        return of_groups(self.probes, *groups)

    def measure(self, checkpoint: Checkpoint, seen: Sequence[Point], bars: Bars) -> Point:
        """A checkpoint, in the adapter's slot 0, as the search sees it.

        Args:
            checkpoint: what is measured.
            seen: the points of the study so far, this trial's among them.
            bars: where progress is shown.
        """
        blank = unrendered(checkpoint, self.base_losses)
        if self.scorer is None:
            return unmeasured_point(blank, self.unmeasured)
        return climb(blank, seen, self.scorer, lambda rung: self.render(rung, bars))

    def score(self, scorer: Scorer, bars: Bars) -> Scorecard:
        """Score what is in the adapter's slot 0 by all of a scorer's probes."""
        return score(scorer, self.render(scorer, bars))

    def render(self, scorer: Scorer, bars: Bars) -> Rendered:
        """A scorer's probes with what is in the adapter's slot 0."""
        with bars.task("rendering probes", scorer.renders) as advance:
            return render_probes(scorer, self.bench.model, self.bench.adapter, advance)


def class_prompts(dataset: Dataset, class_tags: Sequence[str], count: int) -> list[str]:
    """What `count` class pictures show: three of four the class word alone, the others with tags beside it.

    The tags are the model's `class_tags`, or the training captions' visible ones where it has none. Without any the
    prompts are no longer followed; with more of them likeness suffers, as the trigger has all of them against it.
    (On development character 9 all, 3/4, 1/4 alone: likeness .78, .79, .59, bleed .04, .06, .19 by the oracle,
    editability .49, .83, .91.)
    """
    captions = [strip_triggers(picture.caption, dataset) for picture in dataset.pictures]
    tagged = [join_tags([dataset.class_word, *split_tags(tags)]) for tags in class_tags] or captions
    return [tagged[i // 4 % len(tagged)] if i % 4 == 3 else dataset.class_word for i in range(count)]


def class_pictures(
    prompts: Sequence[str], renders: BaseRenders, first_seed: int, advance: Callable[[int], None] | None = None
) -> tuple[Picture, ...]:
    """The prompts as the base model draws them, as training pictures.

    Their seeds lie apart from every probe's, so that bleed is not judged on what was trained.
    """
    shots = [(prompt, first_seed + i) for i, prompt in enumerate(prompts)]
    renders.render(shots, advance)
    found = []
    for prompt, seed in shots:
        path = renders.path(prompt, seed)
        size = renders.model.resolution
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(Picture(path, prompt, "", size, size, digest))
    return tuple(found)


def open_workbench(config: DictConfig, runs: list[Run], bars: Bars) -> Workbench:
    """Load model and pictures, encode, render and embed what is not cached yet.

    Raises:
        StudyError: the runs differ in what they adapt, which one process cannot train side by side.
    """
    kinds = {(run.adapter.targets, run.adapter.text_encoder) for run in runs}
    if len(kinds) > 1:
        raise StudyError("all recipes of a study must adapt the same layers (adapter.targets, adapter.text_encoder)")
    dataset = load_dataset(cfg.dataset_settings(config))
    scoring, settings = cfg.scoring_settings(config), cfg.model_settings(config)
    encoder = load_encoder(scoring.encoder)
    model = load_model(settings)
    cache = Path(str(config.cache)).expanduser()
    latents, renders = LatentCache(model, cache / "latents"), BaseRenders(model, settings.render, cache / "renders")
    with bars.task("encoding pictures", len(dataset.pictures) + len(dataset.held_out)) as advance:
        latents.latents([*dataset.pictures, *dataset.held_out], advance)
    with bars.task("rendering the base model", None) as advance:
        search = BaseRenders(model, settings.render.search, cache / "renders")
        scorer, unmeasured = None, ""
        try:
            scorer = prepare(model, dataset, scoring, encoder, search, latents, advance)
        except Unmeasurable as error:
            unmeasured = str(error)
            bars.say(f"{unmeasured}; going on by validation loss alone")
    shown: tuple[Picture, ...] = ()
    if any(run.train.preserve_share for run in runs):
        with bars.task("rendering class pictures", settings.class_pictures) as advance:
            prompts = class_prompts(dataset, settings.class_tags, settings.class_pictures)
            shown = class_pictures(prompts, renders, scoring.first_seed + 700_000, advance)
    adapter = runs[0].adapter.attach(model.modules, slots=1, max_dim=max(run.adapter.dim for run in runs))
    bench = Bench(model, adapter, dataset, latents, PromptCache(model), shown)
    losses = validation_losses(model, dataset, latents, bench.prompts, adapter)
    probes = build_probes(dataset, scoring, ALL_GROUPS)
    return Workbench(bench, renders, settings.render, scoring, probes, scorer, unmeasured, losses)

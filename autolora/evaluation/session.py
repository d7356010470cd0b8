"""A session: what a process prepares once and all its trials share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autolora.adapters.adapter_set import attach
from autolora.data.concepts import Dataset, with_buckets
from autolora.data.sources import Picture
from autolora.errors import Unmeasurable
from autolora.evaluation.identity import identity_of
from autolora.evaluation.multi_fidelity import evaluate_progressively
from autolora.evaluation.render_speed import RenderSpeed
from autolora.evaluation.result import CheckpointResult, from_losses, unmeasured_result
from autolora.evaluation.samples import save_grid, save_samples
from autolora.export.settings import ExportSettings
from autolora.models.load import load_model
from autolora.models.settings import RenderSettings
from autolora.prepare.regularization import class_pictures, class_prompts
from autolora.prepare.tag_bleed import character_tags, tag_bleed
from autolora.prepare.tagger import load_tagger
from autolora.prepare.tagger_base import Tagger
from autolora.progress import Bars
from autolora.sampling import BaseRenders, Images, RenderRequest, render
from autolora.scoring.encoders import load_encoder, load_second_encoder
from autolora.scoring.eval_prompts import ALL_GROUPS, EvalPrompt, build_eval_prompts, in_groups
from autolora.scoring.scorecard import Rendered, Scorecard, render_eval_prompts, score
from autolora.scoring.scorer import Scorer, build_scorer, with_encoder, with_fresh_prompts
from autolora.scoring.settings import ScoringSettings
from autolora.settings import Settings
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.init_from_lora import check_start
from autolora.train.loss import validation_losses
from autolora.train.run import Run
from autolora.train.slot import TrainingContext


@dataclass(frozen=True)
class Session:
    """The frozen base model with its adapter, the dataset, the caches and the prepared scorer."""

    context: TrainingContext
    renders: BaseRenders
    render_settings: RenderSettings
    scoring: ScoringSettings
    prompts: tuple[EvalPrompt, ...]  # of all groups
    scorer: Scorer | None  # None where nothing can be scored
    unmeasured: str  # why nothing can be scored; empty where it can
    base_losses: tuple[float, ...]  # the base model's validation losses by timestep bucket
    tagger: Tagger | None = None
    export: ExportSettings = field(default_factory=ExportSettings)
    load_seconds: float = 0.0  # of the base model
    speed: RenderSpeed = field(default_factory=RenderSpeed)
    identity: Mapping[str, str] = field(default_factory=dict)  # what must not change while a recipe is continued

    def select(self, *groups: str) -> list[EvalPrompt]:
        """The evaluation prompts of some groups."""
        return in_groups(self.prompts, *groups)

    def measure(
        self,
        checkpoint: Checkpoint,
        trial_results: Sequence[CheckpointResult],
        study_results: Sequence[CheckpointResult],
        bars: Bars,
        samples: Path | None = None,
    ) -> CheckpointResult:
        """Score a checkpoint, which is in the adapter's slot 0, with as few renders as the search needs.

        Args:
            checkpoint: its losses and its weights.
            trial_results: the results of its trial so far.
            study_results: those of all trials, its own among them.
            bars: where progress is shown.
            samples: the folder that keeps some of the renders for the report.
        """
        blank = from_losses(checkpoint, self.base_losses)
        if self.scorer is None:
            return unmeasured_result(blank, self.unmeasured)
        scorer, renders = self.scorer, dict[tuple[EvalPrompt, float], Images]()

        def score_at(weights: Sequence[float]) -> Scorecard:
            rendered = {weight for _, weight in renders}
            renders.update(self.render(scorer.at_weights(*(w for w in weights if w not in rendered)), bars))
            return score(scorer.at_weights(*weights), renders)

        result = evaluate_progressively(blank, trial_results, study_results, scorer.settings, score_at)
        if samples and renders:
            save_grid(samples, checkpoint.step, scorer, renders)
            save_samples(samples, checkpoint.step, scorer.prompts, renders, max(scorer.settings.weights))
        return result

    def tag_bleed(self, scorer: Scorer, renders: Rendered) -> tuple[list[str], dict[str, dict[str, float]]]:
        """The character's tags, and by weight how much more often a tagger sees them on the class word alone.

        Both are empty without a tagger, or where the tagger sees no trait of the character.
        """
        tags = character_tags(self.tagger, self.context.dataset.pictures) if self.tagger else ()
        if not self.tagger or not tags:
            return [], {}
        by_weight, prompts = {}, scorer.select("class_only")
        base = [scorer.base_renders[prompt] for prompt in prompts]
        for weight in scorer.settings.weights:
            images = [renders[prompt, weight] for prompt in prompts]
            estimate = tag_bleed(self.tagger, tags, base, images, scorer.settings.n_bootstrap)
            by_weight[f"{weight:g}"] = estimate.as_dict()
        return list(tags), by_weight

    def score(self, scorer: Scorer, bars: Bars) -> Scorecard:
        """Score the adapter's slot 0 with all prompts of a scorer."""
        return score(scorer, self.render(scorer, bars))

    def render(self, scorer: Scorer, bars: Bars) -> Rendered:
        """Render all prompts of a scorer with the adapter's slot 0."""
        began, model = time.perf_counter(), self.context.model
        with bars.task("rendering probes", scorer.num_renders) as advance:
            rendered = render_eval_prompts(scorer, model, self.context.adapter, advance)
        self.speed.add(time.perf_counter() - began, scorer.num_renders, scorer.render_settings, model.resolution)
        return rendered

    def measure_speed(self) -> None:
        """Render a few images where nothing was rendered yet, so that the speed is known."""
        if self.scorer is None or self.speed.work:
            return
        model, settings = self.context.model, self.scorer.render_settings
        requests = [RenderRequest(prompt.prompt, prompt.seeds[0], 1.0) for prompt in self.scorer.prompts][:4]
        began = time.perf_counter()
        render(model, requests, settings, self.context.adapter)
        self.speed.add(time.perf_counter() - began, len(requests), settings, model.resolution)


def encode(latents: LatentCache, pictures: Sequence[Picture], flip: bool, bars: Bars) -> None:
    """Encode images, and mirrored ones where a run shows them, before there is anything to train.

    Encoding an image of 1024 px takes 3 GB. That does not fit beside a trial on small cards; tiles or 16 bits would
    change the latents.
    """
    ways = (False, True) if flip else (False,)
    with bars.task("encoding images", len(ways) * len(pictures)) as advance, latents.model.on_device("vae"):
        for picture in pictures:
            for way in ways:
                latents.latents([picture], [way], advance)


def open_session(settings: Settings, dataset: Dataset, runs: Sequence[Run], bars: Bars) -> Session:
    """Load the model; encode, render and embed what is not cached yet.

    Args:
        settings: model, scoring, export and cache folder.
        dataset: the images, as `load_dataset` read them.
        runs: all that may train in the session: what they need is prepared.
        bars: where progress is shown.

    Raises:
        ConfigError: an encoder or a tagger that is missing, or a run that cannot train on this dataset.
        ModelError: the base model cannot be loaded.
    """
    for run in runs:
        run.images_by_concept(run.with_captions(dataset))  # a run that cannot train is refused before anything loads
    scoring, rendering = settings.scoring, settings.model.render
    encoder, tagger = load_encoder(scoring.encoder), load_tagger(scoring.tagger) if scoring.tagger else None
    began = time.perf_counter()
    model = load_model(settings.model)
    load_seconds = time.perf_counter() - began
    if scoring.second_encoder:
        load_second_encoder(scoring.second_encoder, model)  # a missing one is told now, not hours later in the finals
    for run in runs:
        check_start(run, model)
        run.optimizer.check(model.device)
    identity = {**identity_of(settings, dataset), "base model": model.base_hash}
    dataset = with_buckets(dataset, settings.dataset, model.resolution)
    latents = LatentCache(model, settings.cache / "latents")
    renders = BaseRenders(model, rendering, settings.cache / "renders")
    encode(latents, [*dataset.pictures, *dataset.validation], any(run.train.flip_aug for run in runs), bars)
    search = BaseRenders(model, rendering.search, settings.cache / "renders")
    scorer, unmeasured = None, ""
    with bars.task("rendering the base model", None) as advance:
        try:
            scorer = build_scorer(model, dataset, scoring, encoder, search, latents, advance)
        except Unmeasurable as error:
            unmeasured = str(error)
            bars.log(f"{unmeasured}; going on by validation loss alone")
    class_images = _class_images(settings, dataset, runs, latents, bars)
    adapter = attach(model.modules, *(run.adapter for run in runs))
    model.keep_on_device(*adapter.roots)
    context = TrainingContext(model, adapter, dataset, latents, PromptCache(model), class_images)
    losses = validation_losses(model, dataset, latents, context.prompts, adapter)
    probes = build_eval_prompts(dataset, scoring, ALL_GROUPS)
    return Session(
        context,
        renders,
        rendering,
        scoring,
        probes,
        scorer,
        unmeasured,
        losses,
        tagger,
        settings.export,
        load_seconds,
        identity=identity,
    )


def _class_images(
    settings: Settings, dataset: Dataset, runs: Sequence[Run], latents: LatentCache, bars: Bars
) -> tuple[Picture, ...]:
    """The class images that some runs show beside the dataset's: the user's, or rendered by the base model."""
    model, showing = latents.model, [run.train for run in runs if run.train.shows_class_pictures]
    images = dataset.regularization
    if not images and showing:
        count = settings.model.num_class_images
        with bars.task("rendering class images", count) as advance:
            prompts = class_prompts(dataset, settings.model.class_tags, count)
            full_size = replace(settings.model.render, size=None)
            renders = BaseRenders(model, full_size, settings.cache / "renders")
            images = class_pictures(prompts, renders, settings.scoring.seed, advance)
    if showing:
        shown = images[: max(train.num_class_images or len(images) for train in showing)]
        encode(latents, shown, any(run.train.flip_aug for run in runs), bars)
    return images


REPEATS = 4  # seeds per prompt, as a multiple of the search's


def final_scorer(search: Scorer, session: Session, bars: Bars) -> Scorer:
    """The search's score with seeds of its own and more of them, all groups of probes and a second encoder."""
    context, second = session.context, search.settings.second_encoder
    with bars.task("rendering the base model for the finals", None) as advance:
        scorer = with_fresh_prompts(search, context.dataset, session.renders, context.adapter, REPEATS, advance)
    if second is None:
        return scorer
    try:
        return replace(scorer, second=with_encoder(scorer, load_second_encoder(second, context.model)))
    except Unmeasurable as error:  # by that encoder; the first one knows what it sees
        bars.log(f"{error}; going on without a second opinion")
        return scorer

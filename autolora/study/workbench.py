"""Everything a process prepares once and all its trials share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.data.concepts import load_dataset
from autolora.errors import StudyError
from autolora.models import load_model
from autolora.models.base import RenderSettings
from autolora.progress import Bars
from autolora.sampling import BaseRenders
from autolora.scoring.encoders import load_encoder
from autolora.scoring.scorecard import Scorecard, render_probes, score
from autolora.scoring.scorer import Scorer, prepare
from autolora.train.batches import LatentCache, PromptCache
from autolora.train.loop import Bench
from autolora.train.run import Run


@dataclass(frozen=True)
class Workbench:
    """The frozen model with its adapter, the pictures, the caches and the prepared score."""

    bench: Bench
    renders: BaseRenders
    render_settings: RenderSettings
    scorer: Scorer

    def score(self, bars: Bars | None = None) -> Scorecard:
        """Score what is in the adapter's slot 0."""
        count = sum(len(probe.seeds) for probe in self.scorer.probes) * len(self.scorer.settings.weights)
        if bars is None:
            return score(
                self.scorer, render_probes(self.scorer, self.bench.model, self.bench.adapter, self.render_settings)
            )
        with bars.task("rendering probes", count) as advance:
            pictures = render_probes(self.scorer, self.bench.model, self.bench.adapter, self.render_settings, advance)
        return score(self.scorer, pictures)


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
        scorer = prepare(model, dataset, scoring, encoder, renders, latents, advance)
    adapter = runs[0].adapter.attach(model.modules, slots=1, max_dim=max(run.adapter.dim for run in runs))
    bench = Bench(model, adapter, dataset, latents, PromptCache(model))
    return Workbench(bench, renders, settings.render, scorer)

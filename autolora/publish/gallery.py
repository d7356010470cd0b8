"""Renders what a report and a model card show beside the renders of the search, and keeps it as files.

Checkpoints are shown by the renders that they were scored by. Renders that no score needed, at other weights and of
prompts without their triggers, are made once and kept in the trial's folder: for each checkpoint at most 7 prompts at
5 weights, and 3 prompts without triggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from autolora.adapters.base import State
from autolora.evaluation.result import CheckpointResult, TrialResults
from autolora.evaluation.samples import Sample, read_samples, sample_prompts, write_samples
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.models.settings import RenderSettings
from autolora.progress import Bars
from autolora.publish.gallery_files import ColumnFiles, GalleryFiles, MatrixFiles, PairFiles, Strip
from autolora.report import schema
from autolora.report.schema import OutfitMatrix
from autolora.sampling import BaseRenders, RenderRequest, render
from autolora.scoring.intervals import Estimate, bootstrap_means, estimate, with_exact_bounds
from autolora.scoring.metrics import concept_pass_scores
from autolora.scoring.scorecard import embed, render_eval_prompts

WEIGHTS = (0.4, 0.6, 0.8, 1.0, 1.2)
GROUPS = {
    "trigger": "With the trigger",
    "novel": "The character in other clothes",
    "class_only": "Without the trigger: this should stay the base model's",
}
FOLDER = Path("finals") / "images"  # in the study's folder: images that belong to no trial
Images = tuple[Image.Image, ...]


@dataclass(frozen=True)
class GalleryEntry:
    """A checkpoint to show, and the weight that is shown first."""

    name: str
    trial_folder: TrialFolder
    step: int
    state: State
    weight: float

    @classmethod
    def best(cls, trial_folder: TrialFolder, result: CheckpointResult) -> GalleryEntry:
        """The entry of the checkpoint that is exported, at its recommended weight."""
        return cls("best", trial_folder, result.step, trial_folder.load(result), result.weight)


@dataclass(frozen=True)
class SampleRenderer:
    """Finds the sample images of checkpoints, and renders those that the search did not keep."""

    session: Session
    samples: tuple[Sample, ...]
    bars: Bars

    @classmethod
    def open(cls, session: Session, bars: Bars) -> SampleRenderer:
        """A renderer of the session's samples."""
        prompts = sample_prompts(session.scorer.prompts if session.scorer else session.prompts)
        return cls(session, tuple(map(Sample.of, prompts)), bars)

    @property
    def triggerless(self) -> tuple[Sample, ...]:
        """The samples with triggers, as prompts without them."""
        return tuple(Sample("without", s.base_prompt, s.base_prompt, s.seed) for s in self.samples if _has_trigger(s))

    @property
    def render_settings(self) -> RenderSettings:
        """The settings that the search rendered with, so that all columns can be compared."""
        return self.session.scorer.render_settings if self.session.scorer else self.session.render_settings

    @property
    def search_weight(self) -> float:
        """The weight at which the search kept renders."""
        return max(self.session.scoring.weights)

    def base(self) -> Images:
        """The samples by the base model, without triggers."""
        renders = BaseRenders(self.session.context.model, self.render_settings, self.session.renders.folder)
        requests = [(sample.base_prompt, sample.seed) for sample in self.samples]
        return tuple(map(Image.fromarray, renders.render(requests, adapter=self.session.context.adapter)))

    def at(self, entry: GalleryEntry, weight: float) -> Images:
        """The samples by one checkpoint at one weight."""
        folder = entry.trial_folder.samples
        return self._read_or_render(entry, weight, self.samples, folder, self._name(entry, weight))

    def without(self, entry: GalleryEntry) -> Images:
        """The samples with triggers, without them, by one checkpoint at the weight that is shown first."""
        folder = entry.trial_folder.samples / "without"
        return self._read_or_render(entry, entry.weight, self.triggerless, folder, f"{entry.step}@{entry.weight:g}")

    def is_kept(self, entry: GalleryEntry) -> bool:
        """Whether the samples of a checkpoint were rendered at the gallery's first weight before."""
        folder = entry.trial_folder.samples
        return bool(_images_of(read_samples(folder, self._name(entry, WEIGHTS[0])), self.samples))

    def strip(self, entry: GalleryEntry, weight: float, study_folder: Path) -> Strip:
        """The file of `at`, rendered if it does not exist."""
        self.at(entry, weight)
        return _strip(entry.trial_folder.samples, self._name(entry, weight), study_folder)

    def strip_without(self, entry: GalleryEntry, study_folder: Path) -> Strip:
        """The file of `without`, rendered if it does not exist."""
        self.without(entry)
        return _strip(entry.trial_folder.samples / "without", f"{entry.step}@{entry.weight:g}", study_folder)

    def _name(self, entry: GalleryEntry, weight: float) -> str:
        """The file's name: the search's own renders if it kept them, else one for this weight."""
        scored = weight == self.search_weight and scored_by(entry.trial_folder, entry.step, self.samples)
        return f"{entry.step}" if scored else f"{entry.step}@{weight:g}"

    def _read_or_render(
        self, entry: GalleryEntry, weight: float, samples: Sequence[Sample], folder: Path, name: str
    ) -> Images:
        if images := _images_of(read_samples(folder, name), samples):
            return images
        model, adapter = self.session.context.model, self.session.context.adapter
        adapter.load(entry.state)
        requests = [RenderRequest(sample.prompt, sample.seed, weight) for sample in samples]
        with self.bars.task(f"rendering the report: {entry.name}, weight {weight:g}", len(requests)) as advance:
            renders = render(model, requests, self.render_settings, adapter, advance)
        write_samples(folder, name, samples, list(renders))
        return tuple(map(Image.fromarray, renders))


def scored_by(trial: TrialResults, step: int, samples: Sequence[Sample] | None = None) -> Images:
    """The kept renders that a checkpoint was scored by; none if they are of other samples than those given."""
    return _images_of(read_samples(trial.samples, f"{step}"), samples)


def _images_of(stored: Sequence[tuple[Sample, Image.Image]], samples: Sequence[Sample] | None) -> Images:
    if samples is not None and [sample for sample, _ in stored] != list(samples):
        return ()
    return tuple(image for _, image in stored)


def _strip(folder: Path, name: str, study_folder: Path) -> Strip:
    return Strip(folder.relative_to(study_folder).as_posix(), name)


def _has_trigger(sample: Sample) -> bool:
    return sample.group == "trigger"


def render_gallery(renderer: SampleRenderer, entries: Sequence[GalleryEntry], study_folder: Path) -> GalleryFiles:
    """Make the files of the gallery: a column for the base model, then one for each entry.

    Args:
        renderer: the study's samples.
        entries: the baselines, then the best checkpoint.
        study_folder: receives the base model's images.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder, best = study_folder / FOLDER, entries[-1]
    write_samples(folder, "base", renderer.samples, [np.asarray(image) for image in renderer.base()])
    columns = [ColumnFiles("base model", {0: _strip(folder, "base", study_folder)}, {}, 0, 1.0)]
    for entry in entries:
        weights = sorted({*WEIGHTS, best.weight, renderer.search_weight})
        by_weight = {weight: renderer.strip(entry, weight, study_folder) for weight in weights}
        trial = entry.trial_folder
        kept = [p.step for p in trial.results if scored_by(trial, p.step, renderer.samples)]
        by_step = {step: _strip(trial.samples, f"{step}", study_folder) for step in kept}
        by_step = by_step or {entry.step: by_weight[renderer.search_weight]}
        columns.append(ColumnFiles(entry.name, by_step, by_weight, entry.step, entry.weight))
    samples = tuple(schema.Sample(s.prompt, s.seed, GROUPS[s.group]) for s in renderer.samples)
    return GalleryFiles(samples, tuple(columns), renderer.search_weight)


def render_pairs(
    renderer: SampleRenderer, entries: Sequence[GalleryEntry], gallery: GalleryFiles, study_folder: Path
) -> tuple[PairFiles, ...]:
    """Make the files of the pairs: the best checkpoint with and without the trigger, the first baseline without it.

    Args:
        renderer: the study's samples.
        entries: the baselines, then the best checkpoint.
        gallery: what `render_gallery` made of them.
        study_folder: the folder of the study.

    Raises:
        StorageError: the folder cannot be written.
    """
    best, *baselines = [entries[-1], *entries[:1]] if len(entries) > 1 else entries
    base, with_trigger = gallery.columns[0].by_step[0], gallery.columns[-1].by_weight[best.weight]
    without = {entry.name: renderer.strip_without(entry, study_folder) for entry in (best, *baselines)}
    pairs = []
    for row, place in enumerate(place for place, sample in enumerate(renderer.samples) if _has_trigger(sample)):
        images = {"best, with": (with_trigger, place), "best, without": (without[best.name], row)}
        images |= {f"{entry.name}, without": (without[entry.name], row) for entry in baselines}
        sample = renderer.samples[place]
        images["base model"] = (base, place)
        pairs.append(PairFiles(sample.prompt, sample.base_prompt, sample.seed, images))
    return tuple(pairs)


def render_matrix(renderer: SampleRenderer, best: GalleryEntry) -> OutfitMatrix | None:
    """How often each outfit's renders pass for each outfit; None if there is one outfit, or nothing can be measured."""
    session = renderer.session
    if session.scorer is None or len(session.context.dataset.concepts) < 2:
        return None
    scorer = session.scorer.only("trigger").at_weights(best.weight)
    session.context.adapter.load(best.state)
    with renderer.bars.task("rendering the outfits", scorer.num_renders) as advance:
        renders = render_eval_prompts(scorer, session.context.model, session.context.adapter, advance)
    names = tuple(concept.name for concept in scorer.references.concepts)
    passes_by_outfit, _ = concept_pass_scores(scorer, embed(scorer, renders)[best.weight])
    shares, telling = [], []
    for name, passes in zip(names, passes_by_outfit, strict=True):
        images = np.concatenate([renders[p, best.weight] for p in scorer.select("trigger", concept=name)])
        tables = [passes[..., place] for place in range(len(names))]
        draws = [bootstrap_means(table, scorer.settings.n_bootstrap, 0) for table in tables]
        rates = [estimate(float(t.mean()), d, len(t)) for t, d in zip(tables, draws, strict=True)]
        shares.append(tuple(_clipped(with_exact_bounds(rate, passes[..., 0].size)) for rate in rates))
        telling.append(tuple(Image.fromarray(images[int(table.reshape(-1).argmax())]) for table in tables))
    real = tuple(Image.fromarray(scorer.reference_images.training[name][0]) for name in names)
    return OutfitMatrix(names, real, tuple(shares), tuple(telling))


def write_matrix(matrix: OutfitMatrix, study_folder: Path) -> MatrixFiles:
    """Write the images of an outfit matrix.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = study_folder / FOLDER / "outfits"
    samples = [Sample("outfit", name, name, 0) for name in matrix.names]

    def write(name: str, images: Images) -> Strip:
        write_samples(folder, name, samples, [np.asarray(image) for image in images])
        return _strip(folder, name, study_folder)

    renders = tuple(write(f"{row}", images) for row, images in enumerate(matrix.renders))
    return MatrixFiles(matrix.names, write("real", matrix.real), matrix.shares, renders)


def _clipped(rate: Estimate) -> Estimate:
    return Estimate(*(min(max(end, 0.0), 1.0) for end in (rate.value, rate.low, rate.high)))

"""The pictures of a report: the base model, the unchanged recipes and the best side by side.

Checkpoints show what they were scored by. What no score needed, other weights and prompts without their triggers, is
rendered once and kept in the trial's folder: of each column at most 7 prompts at 5 weights, and 3 without triggers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from autolora.adapters.base import State
from autolora.evaluation.samples import Sample, read_samples, sample_probes, write_samples
from autolora.evaluation.session import Session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.models.settings import RenderSettings
from autolora.progress import Bars
from autolora.report import schema as content
from autolora.report.schema import Column, Gallery, OutfitMatrix, Pair
from autolora.sampling import BaseRenders, RenderRequest, render
from autolora.scoring.intervals import Estimate, bootstrap_means, estimate, with_exact_bounds
from autolora.scoring.metrics import outfit_matrix
from autolora.scoring.scorecard import embed, render_probes

WEIGHTS = (0.4, 0.6, 0.8, 1.0, 1.2)
GROUPS = {
    "trigger": "With the trigger",
    "novel": "The character in other clothes",
    "class_only": "Without the trigger: this should stay the base model's",
}
Images = tuple[Image.Image, ...]


@dataclass(frozen=True)
class GalleryEntry:
    """A checkpoint to show, and the weight at which it counts."""

    name: str
    record: TrialFolder
    step: int
    state: State
    weight: float


@dataclass(frozen=True)
class SampleRenderer:
    """Finds the samples of checkpoints, and renders those that the search did not keep."""

    session: Session
    samples: tuple[Sample, ...]
    bars: Bars

    @classmethod
    def open(cls, session: Session, bars: Bars) -> SampleRenderer:
        """The samples of a study."""
        probes = sample_probes(session.scorer.probes if session.scorer else session.probes)
        return cls(session, tuple(map(Sample.of, probes)), bars)

    @property
    def triggerless(self) -> tuple[Sample, ...]:
        """The samples that have triggers, by their prompts without these."""
        return tuple(Sample("without", s.base_prompt, s.base_prompt, s.seed) for s in self.samples if _called(s))

    @property
    def render_settings(self) -> RenderSettings:
        """How the search rendered, so that all columns compare."""
        return self.session.scorer.render_settings if self.session.scorer else self.session.render_settings

    def base(self) -> Images:
        """The samples by the base model, without triggers."""
        renders = BaseRenders(self.session.context.model, self.render_settings, self.session.renders.folder)
        shots = [(sample.base_prompt, sample.seed) for sample in self.samples]
        return tuple(map(Image.fromarray, renders.render(shots, adapter=self.session.context.adapter)))

    def at(self, one: GalleryEntry, weight: float) -> Images:
        """The samples by one checkpoint at one weight."""
        if weight == max(self.session.scoring.weights) and (known := scored_by(one.record, one.step, self.samples)):
            return known
        return self._rendered(one, weight, self.samples, one.record.samples)

    def without(self, one: GalleryEntry) -> Images:
        """The samples that have triggers, without these, at the weight that counts."""
        return self._rendered(one, one.weight, self.triggerless, one.record.samples / "without")

    def _rendered(self, one: GalleryEntry, weight: float, samples: Sequence[Sample], folder: Path) -> Images:
        name = f"{one.step}@{weight:g}"
        if known := _of(read_samples(folder, name), samples):
            return known
        model, adapter = self.session.context.model, self.session.context.adapter
        adapter.load(one.state)
        shots = [RenderRequest(sample.prompt, sample.seed, weight) for sample in samples]
        with self.bars.task(f"rendering the report: {one.name}, weight {weight:g}", len(shots)) as advance:
            pictures = render(model, shots, self.render_settings, adapter, advance)
        write_samples(folder, name, samples, list(pictures))
        return tuple(map(Image.fromarray, pictures))


def scored_by(record: TrialFolder, step: int, samples: Sequence[Sample] | None = None) -> Images:
    """What a checkpoint was scored by, where it was kept, and is of these samples if they are given."""
    return _of(read_samples(record.samples, f"{step}"), samples)


def _of(found: Sequence[tuple[Sample, Image.Image]], samples: Sequence[Sample] | None) -> Images:
    if samples is not None and [sample for sample, _ in found] != list(samples):
        return ()
    return tuple(image for _, image in found)


def _called(sample: Sample) -> bool:
    return sample.group == "trigger"


def _share(rate: Estimate) -> Estimate:
    return Estimate(*(min(max(end, 0.0), 1.0) for end in (rate.value, rate.low, rate.high)))


def gallery(shelf: SampleRenderer, exhibits: Sequence[GalleryEntry]) -> Gallery:
    """A column for the base model, then one for each exhibit, by its checkpoints and by weight."""
    best, searched = exhibits[-1], max(shelf.session.scoring.weights)
    columns = [Column("base model", {0: shelf.base()})]
    for one in exhibits:
        by_weight = {weight: shelf.at(one, weight) for weight in sorted({*WEIGHTS, best.weight, searched})}
        kept = {p.step: scored_by(one.record, p.step, shelf.samples) for p in one.record.results}
        by_step = {step: images for step, images in kept.items() if images}
        columns.append(Column(one.name, by_step or {one.step: by_weight[searched]}, by_weight, one.step, one.weight))
    shown = tuple(content.Sample(s.prompt, s.seed, GROUPS[s.group]) for s in shelf.samples)
    return Gallery(shown, tuple(columns), searched)


def pairs(shelf: SampleRenderer, exhibits: Sequence[GalleryEntry]) -> tuple[Pair, ...]:
    """With and without the trigger: the best, and the first unchanged recipe without it, beside the base model."""
    best, *others = [exhibits[-1], *exhibits[:1]] if len(exhibits) > 1 else exhibits
    called = [place for place, sample in enumerate(shelf.samples) if _called(sample)]
    calling, base = shelf.at(best, best.weight), shelf.base()
    alone = {one.name: shelf.without(one) for one in (best, *others)}
    found = []
    for row, place in enumerate(called):
        images = {"best, with": calling[place], "best, without": alone[best.name][row]}
        images |= {f"{one.name}, without": alone[one.name][row] for one in others}
        sample = shelf.samples[place]
        found.append(Pair(sample.prompt, sample.base_prompt, sample.seed, {**images, "base model": base[place]}))
    return tuple(found)


def matrix(shelf: SampleRenderer, best: GalleryEntry) -> OutfitMatrix | None:
    """How often each outfit's renders pass for every outfit; None where there is one, or nothing can be measured."""
    session = shelf.session
    if session.scorer is None or len(session.context.dataset.concepts) < 2:
        return None
    scorer = session.scorer.only("trigger").at(best.weight)
    session.context.adapter.load(best.state)
    with shelf.bars.task("rendering the outfits", scorer.renders) as advance:
        pictures = render_probes(scorer, session.context.model, session.context.adapter, advance)
    names = tuple(concept.name for concept in scorer.references.concepts)
    asked, _ = outfit_matrix(scorer, embed(scorer, pictures)[best.weight])
    shares, telling = [], []
    for name, passes in zip(names, asked, strict=True):
        own = np.concatenate([pictures[p, best.weight] for p in scorer.of("trigger", concept=name)])
        tables = [passes[..., place] for place in range(len(names))]
        draws = [bootstrap_means(table, scorer.settings.n_bootstrap, 0) for table in tables]
        rates = [estimate(float(t.mean()), d, len(t)) for t, d in zip(tables, draws, strict=True)]
        shares.append(tuple(_share(with_exact_bounds(rate, passes[..., 0].size)) for rate in rates))
        telling.append(tuple(Image.fromarray(own[int(table.reshape(-1).argmax())]) for table in tables))
    real: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = scorer.material.training
    return OutfitMatrix(names, tuple(Image.fromarray(real[n][0]) for n in names), tuple(shares), tuple(telling))

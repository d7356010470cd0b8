"""The sections of `autolora check`: images, captions, buckets, images shown, triggers, memory and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from autolora.adapters.adapter_set import attach
from autolora.data.bucket_report import bucket_sheet, bucket_table
from autolora.data.caption_cleaning import clean_report
from autolora.data.concepts import Dataset
from autolora.data.step_table import make_step_table
from autolora.data.tag_report import RISKS, TagRow, absorbed_by_level, images_by_tag, tag_rows
from autolora.errors import ConfigError, MemoryFull, memory_full
from autolora.evaluation.throughput import measure_speed
from autolora.models.base import BaseModel
from autolora.optim.schedules import SCHEDULES
from autolora.preflight.base_model import pruning_section, trigger_section
from autolora.preflight.cost import Renders, cost_section, count_renders
from autolora.preflight.memory import memory_section
from autolora.prepare.tagger import load_tagger
from autolora.progress import Bars
from autolora.report.figures.curves import schedules
from autolora.report.tables import Cell, Section
from autolora.sampling import BaseRenders
from autolora.scoring.encoders import Encoder, load_encoder, load_second_encoder
from autolora.scoring.settings import ScoringSettings
from autolora.settings import Settings, StudySettings
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.run import Run
from autolora.train.slot import TrainingContext

T = TypeVar("T")
CURVE_POINTS = 200  # of a plotted schedule
MOST_STEPS = 10_000  # of a schedule that are computed for it


def dataset_sections(dataset: Dataset) -> list[Section]:
    """The images by concept, the problems with them, and what their buckets cut off."""
    rows = []
    for concept in dataset.concepts:
        validation = [picture for picture in dataset.validation if picture.concept == concept.name]
        sizes = sorted({(p.width * p.height, f"{p.width}x{p.height}") for p in (*concept.pictures, *validation)})
        masks = sum(picture.mask is not None for picture in (*concept.pictures, *validation))
        ends = " to ".join(dict.fromkeys([sizes[0][1], sizes[-1][1]]))
        rows.append((concept.name, concept.trigger, len(concept.pictures), len(validation), masks, ends))
    words = [f"trigger {dataset.trigger}, class word {dataset.class_word}", *dataset.notes]
    if dataset.regularization:
        words.append(f"{len(dataset.regularization)} regularization images of your own")
    columns = ("concept", "trigger", "training", "validation", "masks", "sizes")
    images = Section("Images", columns, tuple(rows), tuple(words))
    everything = [*dataset.pictures, *dataset.validation]
    buckets = tuple(
        (f"{r.bucket[0]}x{r.bucket[1]}", r.pictures, r.mean_cropped, r.worst_cropped, r.mean_scale, r.worst_scale)
        for r in bucket_table(everything)
    )
    columns = ("bucket", "images", "share cut off", "worst share", "scale", "largest scale")
    lost = any(row[3] > 0.005 or row[5] > 1 for row in buckets)
    sheet = bucket_sheet(everything) if lost else None
    text = "the images that lose most; what is cut off is dimmed" if lost else "nothing is cut off or enlarged"
    return [images, Section("Buckets", columns, buckets, (text,), sheet)]


def caption_sections(dataset: Dataset, model: BaseModel) -> list[Section]:
    """The tags that cleaning removes, the tags of the captions, those that a trigger could absorb; long captions."""
    removed = tuple((removal.tag, removal.reason, removal.count) for removal in clean_report(dataset))
    cleaned = Section("Removed tags", ("tag", "reason", "captions"), removed, () if removed else ("nothing",))
    names = [concept.name for concept in dataset.concepts]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.tag, row.kind, row.count, *(f"{row.shares[name]:.0%}" for name in names), _always(row, names))
        for row in tag_rows(dataset)
    )
    advice = tuple(
        f"captions.absorb_tags={level}: {trigger} absorbs {', '.join(tags)}"
        for level, tags_by_trigger in absorbed_by_level(dataset).items()
        for trigger, tags in tags_by_trigger.items()
    )
    tags = Section("Tags", ("tag", "kind", "captions", *names, "always in"), rows, advice)
    limit = model.max_prompt_tokens
    long = tuple(
        (picture.path.name, count, " ".join(model.tokens(picture.caption)[limit:]))
        for picture in (*dataset.pictures, *dataset.validation)
        if (count := len(model.tokens(picture.caption))) > limit
    )
    text = f"{len(long) or 'no'} captions are longer than the {limit} tokens that the text encoder reads"
    return [cleaned, tags, Section("Long captions", ("image", "tokens", "cut off"), long, (text,))]


def _always(row: TagRow, names: Sequence[str]) -> str:
    """The concepts in which every caption has the tag."""
    return "all" if len(row.absorbed) == len(names) else ", ".join(row.absorbed)


def recipe_section(run: Run, dataset: Dataset) -> Section:
    """The images that a recipe shows, by concept, with the captions as it edits them, and the tags at risk."""
    edited, steps = run.with_captions(dataset), run.images_by_concept(dataset)
    table = make_step_table(edited, steps, run.train.epochs, run.class_images_per_epoch(dataset))
    rows: list[tuple[Cell, ...]] = [
        (row.concept, row.images, row.repeats, row.steps_per_epoch, row.steps_total, row.overlap, row.risk)
        for row in table.rows
    ]
    rows += [
        (kind, None, None, count, count * table.epochs, None, None)
        for kind, count in table.class_images.items()
        if count
    ]
    by_concept = {concept.name: count for concept, count in zip(dataset.concepts, steps, strict=True)}
    risks: dict[str, list[str]] = {}
    has_class_images = sum(table.class_images.values()) > 0  # they teach the class word other characters
    for tag in images_by_tag(edited, by_concept, run.train.epochs):
        if tag.risk and not (has_class_images and tag.risk == "bleed"):
            risks.setdefault(tag.risk, []).append(f"{tag.tag} {tag.steps_total:.0f}")
    words = (
        *run.adapter.notes(),
        *([f"starts from {run.init_lora.path}"] if run.init_lora else []),
        *(f"{risk} ({', '.join(tags)} images): {RISKS[risk]}" for risk, tags in risks.items()),
    )
    columns = ("", "images", "repeats", "shown/epoch", "shown", "overlap", "risk")
    return Section(f"Recipe {run.name}: images shown", columns, tuple(rows), words)


def schedule_section(runs: Sequence[Run], dataset: Dataset) -> Section:
    """The learning rate of each recipe over its run."""
    rows, curves = [], {}
    for run in runs:
        total = run.optimizer_steps(dataset)
        steps = range(0, total, max(1, total // MOST_STEPS))
        curve = [run.schedule.factor(step, total) for step in steps]
        curves[run.name] = list(zip(steps, curve, strict=True))[:: max(1, len(steps) // CURVE_POINTS)]
        name = next(name for name, kind in SCHEDULES.items() if type(run.schedule) is kind)
        rows.append((run.name, name, run.optimizer.lr * max(curve), total, _sparkline(curve)))
    columns = ("recipe", "schedule", "highest rate", "optimizer steps", "rate")
    words = ("Prodigy estimates the rate; this is a factor of it",) if any(r.optimizer.lr == 1 for r in runs) else ()
    return Section("Learning rate", columns, tuple(rows), words, figure=schedules(curves))


def _sparkline(curve: Sequence[float], width: int = 16) -> str:
    """A curve from 0 to 1 as a line of text."""
    levels = "▁▂▃▄▅▆▇█"
    places = [round(i * (len(curve) - 1) / (width - 1)) for i in range(width)]
    return "".join(levels[round(curve[place] * (len(levels) - 1))] for place in places)


def measured_sections(
    settings: Settings, runs: Sequence[Run], session_runs: Sequence[Run], dataset: Dataset, model: BaseModel, bars: Bars
) -> list[Section]:
    """What only the base model can tell: what it draws for the triggers' words, and what training and rendering cost.

    Where the GPU's memory is too small for one of them, that section says so; the memory of each recipe is estimated
    in any case.

    Args:
        settings: what the command was asked for.
        runs: the recipes unchanged.
        session_runs: all runs that a session of the study must be able to hold.
        dataset: what they train on.
        model: the base model.
        bars: where progress is shown.
    """
    scoring, study = settings.scoring, settings.study
    trials_at_once = study.trials_per_device if study else 1
    if not isinstance(trials_at_once, int):
        trials_at_once = 1  # `auto` takes as many as fit
    encoder = _loaded(load_encoder, scoring.encoder)
    memory = memory_section(session_runs, dataset, model, trials_at_once, encoder, bars)
    renders = count_renders(session_runs, dataset, model, scoring)
    base = BaseRenders(model, settings.model.render.search, settings.cache / "renders")
    probing_encoder = encoder if settings.probe_triggers else "probe_triggers=false"
    return [
        _that_fits("Triggers", lambda: trigger_section(dataset, base, probing_encoder, scoring, bars)),
        _that_fits("Pruning", lambda: pruning_section(dataset, base, probing_encoder, bars)),
        needs_section(scoring, model, encoder),
        memory,
        _that_fits("Cost", lambda: measured_cost(runs, dataset, model, renders, study, settings.cache, bars)),
    ]


def _that_fits(title: str, build: Callable[[], Section]) -> Section:
    """Build a section; where the GPU's memory is too small for it, the section says so."""
    try:
        return build()
    except (MemoryFull, torch.OutOfMemoryError) as error:
        return Section(title, (), (), (f"not measured: {memory_full(error)}",))


def measured_cost(
    runs: Sequence[Run],
    dataset: Dataset,
    model: BaseModel,
    renders: Renders,
    study: StudySettings | None,
    cache: Path,
    bars: Bars,
) -> Section:
    """What the recipes and the study cost, from the time of a few steps of the first recipe.

    Raises:
        MemoryFull: they do not fit into the GPU's memory, one image at a time.
    """
    settings = model.settings
    with bars.task("timing training and rendering", None):
        adapter = attach(model.modules, runs[0].adapter)
        model.keep_on_device(*adapter.roots)
        class_images = dataset.regularization or dataset.pictures[:4]  # any images cost the same
        latents = LatentCache(model, cache / "latents")
        context = TrainingContext(model, adapter, dataset, latents, PromptCache(model), class_images)
        try:
            speed = measure_speed(runs[0], context, settings.render.search)
        finally:
            adapter.detach()
    return cost_section(runs, dataset, renders, speed, study)


def needs_section(scoring: ScoringSettings, model: BaseModel, encoder: Encoder | str) -> Section:
    """What scoring needs besides the base model, and how to get what is missing; without it nothing is trained.

    Args:
        encoder: the first one, or why there is none.
    """
    needs: list[tuple[str, str | None, Callable[[str], object]]] = [
        ("scoring.encoder", scoring.encoder, lambda _: encoder),
        ("scoring.second_encoder", scoring.second_encoder, lambda name: load_second_encoder(name, model)),
        ("scoring.tagger", scoring.tagger, load_tagger),
    ]
    rows: list[tuple[Cell, ...]] = []
    words = []
    for key, name, load in needs:
        if name is None:
            continue
        loaded = _loaded(load, name)
        rows.append((key, name, "missing" if isinstance(loaded, str) else "found"))
        words += [loaded] if isinstance(loaded, str) else []
    return Section("Needed", ("setting", "value", "state"), tuple(rows), tuple(words))


def _loaded(load: Callable[[str], T], name: str) -> T | str:
    """Load what a setting names, or return why it cannot be loaded."""
    try:
        return load(name)
    except ConfigError as error:
        return str(error)
    except torch.OutOfMemoryError as error:
        return memory_full(error)

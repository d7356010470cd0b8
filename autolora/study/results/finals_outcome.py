"""Gathers the outcome of the finals while the model is loaded: what was chosen and exported, and the images."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from autolora.data.step_table import StepTable, make_step_table
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.kohya_command import kohya_command
from autolora.export.write import ExportedFiles
from autolora.provenance import provenance
from autolora.publish.export import PlainLora
from autolora.publish.gallery import (
    GalleryEntry,
    SampleRenderer,
    render_gallery,
    render_matrix,
    render_pairs,
    write_matrix,
)
from autolora.publish.gallery_files import ImageFiles
from autolora.publish.model_card import write_card
from autolora.publish.roundtrip import RoundtripReport
from autolora.report.schema import Reproduction
from autolora.study.finals.decision import Finals
from autolora.study.finals.finalist import Finalist
from autolora.study.recipes import recipe_yaml, train_command
from autolora.study.results.outcome import (
    ExportOutcome,
    FinalistOutcome,
    FinalsOutcome,
    PlainLoraOutcome,
    trial_states,
)
from autolora.study.results.summary import describe_disagreement, describe_seeds, describe_tag_bleed
from autolora.study.running import RunningStudy
from autolora.study.space import sampled_values

Trials = Sequence[tuple[FrozenTrial, TrialFolder]]


def gather_outcome(
    running: RunningStudy,
    trials: Trials,
    finals: Finals,
    exported: ExportedFiles,
    plain_lora: PlainLora | None,
    roundtrip: RoundtripReport,
) -> FinalsOutcome:
    """Gather the outcome of the finals; renders the report's images and writes the model card.

    Args:
        running: the study.
        trials: its trials that have a scored checkpoint.
        finals: what was chosen.
        exported: the files of the winner.
        plain_lora: the plain LoRA beside it.
        roundtrip: what the verification of the files found.

    Raises:
        StorageError: the folder cannot be written.
    """
    winner, session = finals.winner, running.session
    notes = [
        finals.choice,
        describe_seeds(finals),
        describe_disagreement(finals, session.scoring.second_encoder),
        describe_tag_bleed(winner.result, session.context.dataset.class_word),
    ]
    return FinalsOutcome(
        trial_states=trial_states(running.study),
        finalists=tuple(
            FinalistOutcome(f.trial.number, f.trial_folder.run.name, f.trial_folder.path.name, f.result)
            for f in finals.finalists
        ),
        ties=tuple(finals.ties),
        retrained={number: tuple(results) for number, results in finals.retrained.items()},
        weight=winner.result.weight,
        choice=finals.choice,
        notes=tuple(note for note in notes if note),
        export=_export_outcome(running, exported, plain_lora, roundtrip),
        step_table=_step_table(running, winner.trial_folder),
        reproduction=_reproduction(running, winner),
        images=_render_images(running, trials, winner, exported),
    )


def gallery_entries(trials: Trials, winner: Finalist) -> tuple[list[GalleryEntry], GalleryEntry]:
    """The checkpoints of the gallery: the baselines as they ended, and the winner."""
    entries = []
    for trial, trial_folder in trials:
        if trial.user_attrs.get("baseline"):
            name, last = f"{trial_folder.run.name}, unchanged", trial_folder.results[-1]
            entries.append(GalleryEntry(name, trial_folder, last.step, trial_folder.load(last), 1.0))
    return entries, GalleryEntry.best(winner.trial_folder, winner.result)


def _render_images(running: RunningStudy, trials: Trials, winner: Finalist, exported: ExportedFiles) -> ImageFiles:
    """Render the images of the report, and write the model card, which shows some of them."""
    study_folder, renderer = running.definition.folder, SampleRenderer.open(running.session, running.bars)
    baselines, best = gallery_entries(trials, winner)
    if running.clock.left() <= 0:  # those that are not rendered yet are left out
        baselines = [entry for entry in baselines if renderer.is_kept(entry)]
    entries = [*baselines, best]
    matrix = render_matrix(renderer, entries[-1])
    write_card(renderer, entries[-1], winner.result, exported.path, matrix)
    gallery = render_gallery(renderer, entries, study_folder)
    pairs = render_pairs(renderer, entries, gallery, study_folder)
    for entry in entries:
        running.definition.trial_files.send(entry.trial_folder.path.name)
    return ImageFiles(gallery, pairs, write_matrix(matrix, study_folder) if matrix else None)


def _export_outcome(
    running: RunningStudy, exported: ExportedFiles, plain_lora: PlainLora | None, roundtrip: RoundtripReport
) -> ExportOutcome:
    folder = running.definition.folder
    plain = None
    if plain_lora:
        score = roundtrip.plain_lora_score.as_dict() if roundtrip.plain_lora_score else None
        path = plain_lora.path.relative_to(folder).as_posix()
        plain = PlainLoraOutcome(path, plain_lora.dim, plain_lora.apart, score)
    return ExportOutcome(
        lora=exported.path.relative_to(folder).as_posix(),
        diffusers=exported.diffusers.relative_to(folder).as_posix() if exported.diffusers else None,
        plain_lora=plain,
        read_by=roundtrip.read_by,
    )


def _step_table(running: RunningStudy, trial_folder: TrialFolder) -> StepTable:
    """How often the winner's recipe shows each concept."""
    run, dataset = trial_folder.run, running.session.context.dataset
    return make_step_table(
        run.with_captions(dataset),
        run.images_by_concept(dataset),
        run.train.epochs,
        run.class_images_per_epoch(dataset),
    )


def _reproduction(running: RunningStudy, winner: Finalist) -> Reproduction:
    """The winner's recipe as text, without any path of this machine."""
    run, result = winner.trial_folder.run, winner.result
    dataset, model = running.session.context.dataset, running.session.context.model
    settings, origin = running.definition.settings, provenance()
    recipe, values = sampled_values(winner.trial)
    if run.train.seed:
        values["train.seed"] = run.train.seed
    kohya = kohya_command(run, dataset, model, result.step)
    facts = {
        "base model": f"{model.name}, weights {model.base_hash}",
        "images": f"{dataset.name}: {len(dataset.pictures)} for training, {len(dataset.validation)} for validation",
        "recipe": f"{run.name}, fingerprint {run.fingerprint()}, training seed {run.train.seed}",
        "checkpoint": f"{result.describe_place}, at weight {result.weight:g}",
        "search": f"study {settings.name}, sampler seed {settings.seed}",
        "software": ", ".join(filter(None, [origin["commit"], origin["versions"]])),
        "machine": origin["machine"],
    }
    yaml = recipe_yaml(run, f"{settings.name}-best")
    return Reproduction(yaml, train_command(recipe, values, dataset.name), kohya.text, kohya.notes, facts)

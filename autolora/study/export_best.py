"""Writes a trial's best checkpoint as the file that people use."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from autolora.export.metadata import Card
from autolora.export.write import Exported, export_lora
from autolora.sampling import Shot, render
from autolora.study.trial import Point, Record
from autolora.study.workbench import Workbench


def export_best(record: Record, best: Point, work: Workbench, folder: Path, study: str) -> Exported:
    """Export a record's best checkpoint with its words, figures and a picture; it is left loaded in the adapter.

    Args:
        record: the trial.
        best: its best checkpoint as it was judged last.
        work: what it was trained and scored on.
        folder: where the file, its sidecar and its picture go.
        study: the name of the study or run, kept in the metadata.

    Raises:
        ExportError: the weights cannot be written.
        StorageError: the folder cannot be written.
    """
    dataset, model, adapter = work.bench.dataset, work.bench.model, work.bench.adapter
    state = record.load(best)
    adapter.load(state)
    triggers = ", ".join(dict.fromkeys([dataset.class_word, dataset.trigger, *(c.trigger for c in dataset.concepts)]))
    probe = work.of("trigger")[0]
    preview = render(model, [Shot(probe.prompt, probe.seeds[0], best.weight)], work.render_settings, adapter)[0]
    card = Card(
        activation_text=triggers,
        preferred_weight=best.weight,
        description=f"LoRA of {dataset.trigger} by autolora, recipe {record.run.name}: {best.verdict}",
        step=best.step,
        facts={"study": study, "score": best.words, "base_hash": model.base_hash},
    )
    picture = Image.fromarray(preview)
    return export_lora(state, record.run, dataset, model, folder, dataset.trigger, card=card, preview=picture)

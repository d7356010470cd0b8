"""`autolora train`."""

from __future__ import annotations

import json

from omegaconf import DictConfig

from autolora import config as cfg
from autolora.commands.output import Output, read_json
from autolora.errors import UNMEASURED_EXIT_CODE, StudyError
from autolora.evaluation.session import open_session
from autolora.evaluation.trial_folder import TrialFolder
from autolora.files import write_atomic
from autolora.publish.model_card import write_card_alone
from autolora.publish.roundtrip import export_proved
from autolora.study.definition import adapter_notes
from autolora.study.results.summary import twin_as_dict, twin_in_words
from autolora.train.loop import Job, TrainingSlot
from autolora.train.loop import train as train_rounds


def train(config: DictConfig, study: str | None, arguments: list[str]) -> int:
    """Train one run, score every checkpoint, export the best; the same command continues it."""
    output, run = Output.of(config), cfg.build_run(config)
    folder = cfg.run_folder(config, run.name)
    record = TrialFolder.open(folder, run)
    latest = record.latest()
    if (folder / "score.json").is_file():
        words = f"{folder} is finished; choose another out=FOLDER to train again"
        output.last(words, read_json(folder / "score.json"))
        return 0
    waiting = iter([Job(run, latest)])
    with output.bars() as bars:
        for note in adapter_notes([run]):
            bars.log(note)
        session = open_session(config, [run], bars)
        bar = bars.add(run.name, run.images_per_epoch(session.context.dataset) * run.train.epochs)

        def on_step(slot: TrainingSlot) -> None:
            bars.set(bar, slot.step)
            if slot.relief:
                bars.log(slot.relief)
                slot.relief = ""

        for ready in train_rounds(lambda: next(waiting, None), session.context, on_step):
            checkpoint = ready[0].checkpoint
            assert checkpoint is not None
            if checkpoint.diverged:
                raise StudyError(
                    f"{run.name} diverged at step {checkpoint.step}: lower optimizer.lr or set train.scale_weight_norms"
                )
            if record.scored_step() != checkpoint.step:
                record.append(
                    checkpoint, session.measure(checkpoint, record.results, record.results, bars, record.samples)
                )
            bars.log(f"step {checkpoint.step}: {record.results[-1].summary}")
        best = record.best_result()
        assert best is not None
        exported, twin, proof = export_proved(record, best, session, folder / "best", run.name, session.scorer, bars)
        write_card_alone(session, record, best, exported.path, bars)
    found = record.summary() | ({"plain": twin_as_dict(twin, proof)} if twin else {})
    write_atomic(folder / "score.json", json.dumps(found, indent=2))
    words = f"best checkpoint: step {best.step}, {best.summary}\nLoRA: {exported.path}"
    words += f"\nfor diffusers: {exported.diffusers.parent}" if exported.diffusers else ""
    words += f"\n{twin_in_words(twin, proof)}" if twin else ""
    output.last(words, {**found, "export": exported.path})
    return UNMEASURED_EXIT_CODE if session.unmeasured else 0

"""A study's report is read from its storage and folder, without a model, whether the study has finished or not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from autolora.cli import main
from autolora.data.step_table import StepTable, StepTableRow
from autolora.errors import StudyError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.samples import Sample, write_samples
from autolora.publish.gallery_files import ColumnFiles, GalleryFiles, ImageFiles, MatrixFiles, PairFiles, Strip
from autolora.report import schema
from autolora.report.schema import Reproduction
from autolora.scoring.intervals import Estimate
from autolora.study.artifacts import local_store
from autolora.study.budget import WORKED
from autolora.study.definition import StudyDefinition
from autolora.study.results.outcome import (
    FILE,
    FOLDER,
    ExportOutcome,
    FinalistOutcome,
    FinalsOutcome,
    PlainLoraOutcome,
    read_outcome,
    trial_states,
    write_outcome,
)
from autolora.study.results.report_data import read_report, write_study_report
from autolora.study.storage import study_storage
from tests.study.results.test_comparison import point
from tests.study.results.test_progress import TRIALS, opened
from tests.study.search.test_tune import tune
from tests.study.test_warm_start import ADAMW, planned, start

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

BLOCKED = ("torch", "torchvision", "diffusers", "transformers", "peft", "safetensors", "bitsandbytes", "open_clip")
REFUSE_IMPORTS = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(name + " is imported")

sys.meta_path.insert(0, Refuse())
"""


def without_torch(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command where torch and everything that needs it cannot be imported."""
    (folder / "sitecustomize.py").write_text(REFUSE_IMPORTS)
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root)])}
    command = [sys.executable, "-m", "autolora.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def stored(folder: Path) -> dict[str, Any]:
    """Everything that the storage of a study's folder holds."""
    storage = study_storage(folder)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    attributes = {study.study_name: storage.get_study_system_attrs(study._study_id) for study in studies}
    return {study.study_name: (study.user_attrs, attributes[study.study_name], study.trials) for study in studies}


def test_the_report_of_a_finished_study_is_written_again_without_torch(finished: Path, tmp_path: Path) -> None:
    """It is the page that `tune` wrote, byte for byte, and the study's storage does not change."""
    page, before = finished / "run" / "report" / "index.html", stored(finished / "run")
    written = page.read_bytes()
    page.unlink()
    done = without_torch(tmp_path, ["report", *tune(finished)[1:]])
    assert (done.returncode, done.stderr) == (0, "") and str(page) in done.stdout
    assert page.read_bytes() == written
    assert stored(finished / "run") == before
    assert b'id="gallery"' in written and b'id="pareto"' in written and b"http-equiv" not in written


def test_an_unfinished_study_is_reported_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition = planned(tmp_path / "run", ADAMW)
    study, _ = start(definition)
    command = ["report", definition.source, *definition.arguments]
    page = definition.folder / "report" / "index.html"
    assert main(command) == 0
    assert "No checkpoint is scored yet." in page.read_text("utf-8")
    trial = study.ask()
    trial.set_user_attr("recipe", "doll-adamw")
    trial.set_user_attr("uid", "uid0")
    path = definition.trial_files["uid0"] / "curve.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        '[{"step": 100, "train_loss": 0.1, "val_loss": 0.1, "val_ratios": [0.9], "verdict": "half learned"}]'
    )
    before = stored(definition.folder)
    assert main(command) == 0
    assert "trial 0 (doll-adamw) after 100 images, half learned" in page.read_text("utf-8")
    assert stored(definition.folder) == before and list(before) == ["mona"]


def test_a_study_that_was_not_started_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition = planned(tmp_path / "run", ADAMW)
    assert main(["report", definition.source, *definition.arguments]) == 5
    assert "no study mona in" in capsys.readouterr().err
    assert not (definition.folder / "study.db").exists()


def images(count: int, shade: int) -> list[Any]:
    return [np.full((16, 16, 3), shade + 10 * place, np.uint8) for place in range(count)]


def made_up_outcome(definition: StudyDefinition, study: optuna.Study) -> FinalsOutcome:
    """An outcome of finals with the files of its images: one prompt with a trigger, one without."""
    folder = definition.folder
    samples = [Sample("trigger", "1girl, mona", "1girl", 1), Sample("class_only", "1girl", "1girl", 2)]
    for name, shade in (("base", 0), ("best", 100)):
        write_samples(folder / "finals" / "images", name, samples, images(2, shade))
    write_samples(folder / "finals" / "images" / "without", "best", samples[:1], images(1, 200))
    write_samples(folder / "finals" / "images" / "outfits", "0", samples, images(2, 50))
    base, best = Strip("finals/images", "base"), Strip("finals/images", "best")
    without, outfits = Strip("finals/images/without", "best"), Strip("finals/images/outfits", "0")
    (folder / "best").mkdir()
    (folder / "best" / "mona.safetensors").write_bytes(b"a LoRA")
    sweep = {weight: point(0.5).terms for weight in ("0.6", "1")}
    winner = replace(point(0.5, 300), verdict="good", sweep=sweep, weight=0.6)
    columns = (
        ColumnFiles("base model", {0: base}, {}, 0, 1.0),
        ColumnFiles("best", {300: best}, {0.6: best, 1.0: best}, 300, 0.6),
    )
    shares = ((Estimate(0.9, 0.8, 1.0), Estimate(0.1, 0.0, 0.2)),) * 2
    pair = PairFiles("1girl, mona", "1girl", 1, {"best, with": (best, 0), "best, without": (without, 0)})
    row = StepTableRow("mona", 12, 10.0, 120, 960, 1.0)
    return FinalsOutcome(
        trial_states=trial_states(study),
        finalists=(
            FinalistOutcome(1, "a", "000000000001", winner),
            FinalistOutcome(2, "a", "000000000002", point(0.4)),
        ),
        ties=(2,),
        retrained={1: (point(0.5), point(0.45))},
        weight=0.6,
        choice="",
        notes=("over 2 training seeds trial 1 scores 0.50, 0.45",),
        export=ExportOutcome(
            "best/mona.safetensors", None, PlainLoraOutcome("best/mona-lora.safetensors", 8, 0.01, None), ("kohya",)
        ),
        step_table=StepTable((row, row), 8, {"class images": 96}),
        reproduction=Reproduction("recipe_name: best\n", "autolora train recipe=a", "", ("a note",), {"recipe": "a"}),
        images=ImageFiles(
            GalleryFiles(tuple(schema.Sample(s.prompt, s.seed, "") for s in samples), columns, 1.0),
            (pair,),
            MatrixFiles(("a", "b"), outfits, shares, (outfits, outfits)),
        ),
    )


def test_the_outcome_is_read_as_it_was_written(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    assert read_outcome(definition, study) is None
    outcome = made_up_outcome(definition, study)
    write_outcome(definition, study, outcome)
    assert read_outcome(definition, study) == outcome
    assert isinstance(outcome.winner.result, CheckpointResult)


def test_the_report_shows_the_outcome(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    write_outcome(definition, study, made_up_outcome(definition, study))
    report = read_report(definition, study)
    assert (report.best, report.verdict, report.weight) == (1, "good", 0.6)
    assert report.gallery is not None and report.matrix is not None and len(report.pairs) == 1
    shades = {title: image.getpixel((0, 0)) for title, image in report.pairs[0].images.items()}
    assert shades == {"best, with": (100,) * 3, "best, without": (200,) * 3}
    assert report.trial(1).score == Estimate(0.5, 0.48, 0.52)  # type: ignore[union-attr]  # the finals', not the search's
    assert [p.at for p in report.sweep] == [0.6, 1.0]
    assert report.export_path == definition.folder / "best" / "mona.safetensors"
    page = write_study_report(definition, study, running=True).read_text("utf-8")  # it runs, but nothing will change
    assert "http-equiv" not in page and "over 2 training seeds" in page and "autolora train recipe=a" in page


def test_files_that_are_gone_are_left_out(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    write_outcome(definition, study, made_up_outcome(definition, study))
    (definition.folder / "best" / "mona.safetensors").unlink()
    (definition.folder / "finals" / "images" / "base.webp").write_bytes(b"half an image")
    report = read_report(definition, study)
    assert (report.best, report.export_path, report.gallery, report.pairs, report.matrix) == (1, None, None, (), None)
    write_study_report(definition, study)


def test_an_outcome_is_outdated_by_a_new_trial(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    write_outcome(definition, study, made_up_outcome(definition, study))
    study.ask()
    report = read_report(definition, study)
    assert report.best is None and report.verdict.startswith("Best so far of 3 trials begun")


def test_a_broken_outcome_is_explained(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    for content in ('{"trial_states": {}', '{"trial_states": {}}'):
        path = definition.folder / FOLDER / FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        with pytest.raises(StudyError, match="run `autolora export` on the study"):
            read_report(definition, study)


def test_a_report_elsewhere_fetches_the_outcome_from_the_bucket(tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    here = replace(definition, bucket=local_store(tmp_path / "bucket"))
    write_outcome(here, study, made_up_outcome(here, study))
    assert all(study.study_name in path.name for path in (tmp_path / "bucket" / "artifacts").iterdir())
    there = replace(here, folder=tmp_path / "there")
    report = read_report(there, study)
    assert (report.best, report.export_path) == (1, None) and report.gallery is not None and report.matrix is not None


@pytest.mark.parametrize(("age", "refreshes"), [(1.0, True), (1000.0, False)])
def test_the_page_looks_for_news_while_a_worker_works(age: float, refreshes: bool, tmp_path: Path) -> None:
    definition, study = opened(tmp_path, TRIALS)
    assert read_report(definition, study).refresh_seconds is None
    now = time.time()
    study.ask().set_user_attr(WORKED, [[now - 2000, now - age]])
    assert (read_report(definition, study).refresh_seconds is not None) == refreshes

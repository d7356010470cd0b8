"""Studies as a user runs them, small, on the embedded world: run, continue, kill, change, break."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autolora.cli import main
from autolora.evaluation import trial_folder
from autolora.paperdoll.corpus import base_caption, base_picture
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.weights import BASE
from autolora.scoring.metrics import CONSTRAINTS
from autolora.settings import SWEEP_WEIGHTS
from autolora.study.storage import open_storage, storage_url
from autolora.train.slot import TrainingSlot
from tests import processes

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

NAMES_OF_CONSTRAINTS = {constraint.name for constraint in CONSTRAINTS} - {"spread"}  # one seed: no spread
ALONE = Path(__file__).parents[3] / "examples" / "diffusers_alone.py"
SMALL = (
    "budget.n_trials=3",
    "study.final_seeds=1",
    "study.n_finalists=2",
    "train.epochs=2",
    "train.images_per_concept=24",
    "model.resolution=32",
    "model.render.num_inference_steps=2",
    "model.render.search_inference_steps=2",
    "model.render.guidance_scale=1",
    "scoring.seeds_per_class_prompt=1",
    "scoring.num_negative_renders=48",
    "scoring.num_class_renders=3",
    "scoring.trigger_prompts=[smile]",
    "scoring.outfit_prompts=[hat,glasses]",
    "scoring.class_prompts=[smile]",
    "scoring.unrelated_prompts=[city]",
    "model.num_class_images=16",
    "scoring.n_bootstrap=50",
    "scoring.min_fidelity=0",
)

SHORT_FINALS = (
    "study.final_seeds=0",
    "study.n_finalists=1",
    "study.average_checkpoints=false",
    "study.try_lora_scales=false",
)


def small_study(tmp_path: Path, name: str = "small") -> str:
    """A study file whose recipes are seconds long."""
    path = tmp_path / "mine" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "# @package _global_\n"
        "defaults: [override /model: paperdoll, override /dataset: quickstart, override /scoring: paperdoll]\n"
        f"study:\n  name: {name}\n  recipes:\n    doll-adamw:\n"
        "      train.images_per_concept: {log_int: [4, 24]}\n      adapter.dim: {choice: [4, 16]}\n"
        "      train.prior_preservation_ratio: {choice: [0.0, 0.5]}\n"
    )
    return str(path)


def tune(tmp_path: Path, *more: str, cache: Path | None = None) -> list[str]:
    """The command line of a small study; `cache` is the folder of another study, whose cache it shares."""
    places = [f"out={tmp_path / 'run'}", f"cache={(cache or tmp_path) / 'cache'}"]
    return ["tune", small_study(tmp_path), *places, *SMALL, *more]


def trials_of(tmp_path: Path) -> list[Path]:
    """The folders of a study's trials, without those of its finals."""
    return [path for path in (tmp_path / "run" / "trials").iterdir() if "-" not in path.name]


def final_state(tmp_path: Path, trial: Path | None = None) -> dict[str, bytes]:
    """The adapter of a trial's latest checkpoint, bit for bit."""
    (folder,) = [trial] if trial else trials_of(tmp_path)
    state = torch.load(folder / "latest.pt", weights_only=True)["state"]
    return {key: tensor.numpy().tobytes() for key, tensor in state.items()}


def test_a_study_leaves_what_it_promises(finished: Path) -> None:
    run = finished / "run"
    result = json.loads((run / "result.json").read_text("utf-8"))
    assert sum(result["trials"].values()) == 3
    assert 0 < result["training_seconds"] < result["seconds"]
    wanted = {"fidelity", "likeness", "editability", "bleed_class", "bleed_cross", "bleed_visible", "memorisation"}
    assert wanted <= set(result["best"]["terms"])
    best = result["best"]
    assert best["weight"] in SWEEP_WEIGHTS
    assert set(result["sweep"]) == {f"{weight:g}" for weight in SWEEP_WEIGHTS}
    seen = result["tag_bleed"]
    assert seen["tags"] and -1 <= seen["1"]["low"] <= seen["1"]["high"] <= 1
    assert "doll-adamw" in result["baselines"]
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{run / 'study.db'}")
    for trial in study.trials:  # by name, and as the list that the dashboard reads
        named = {name: value for name, value in trial.constraints.items() if not name.isdigit()}
        assert set(named) == NAMES_OF_CONSTRAINTS
        assert sorted(trial.system_attrs["constraints"]) == sorted(named.values())
        assert len(get_all_artifact_meta(study_or_trial=trial, storage=study._storage)) == 1  # its pictures
    kept = study._storage.get_study_system_attrs(study._study_id)
    plots = {key.split(":")[2] for key in kept if key.startswith("dashboard:plot_data:")}
    assert plots == {"likeness-bleed", "learning-curves", "parameter-effects", "weight-sweep"}
    finals = optuna.load_study(study_name="small/finals", storage=f"sqlite:///{run / 'study.db'}")
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in finals.trials)
    assert sum("+1" in trial.user_attrs["key"] for trial in finals.trials) == 2  # two recipes, one seed more each
    means = [trial for trial in finals.trials if "-average@" in trial.user_attrs["key"]]
    assert means and all(len(trial.user_attrs["point"]["averaged"]) == 2 for trial in means)  # two checkpoints each
    copies = [trial.user_attrs for trial in finals.trials if "-x" in trial.user_attrs["key"]]
    assert copies and {one["point"]["strength"] for one in copies} <= {0.8, 1.25, 1.5}
    assert [len(scores) for scores in result["training_seeds"].values()] == [2, 2]
    lora = Path(result["export"])
    assert lora.is_file() and lora.with_suffix(".json").is_file()
    assert Image.open(lora.with_suffix(".png")).size == (32, 32)
    page = (run / "report" / "index.html").read_text("utf-8")
    assert 'id="gallery"' in page and 'id="pareto"' in page and "http-equiv" not in page
    assert page.count("data-picture=") > 10
    card = (lora.parent / "model_card.md").read_text("utf-8")
    assert lora.name in card and str(run) not in card and (lora.parent / "samples" / "1.png").is_file()


def test_running_again_continues_and_adds_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "run" / "result.json").read_text("utf-8"))
    capsys.readouterr()
    assert main(tune(finished, "json=true", "quiet=true")) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["export"] == before["export"] and said.err == ""
    after = json.loads((finished / "run" / "result.json").read_text("utf-8"))
    assert after["trials"] == before["trials"]
    assert after["best"] == before["best"]


def test_a_changed_space_is_explained_and_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Path(small_study(finished))
    study.write_text(study.read_text().replace("[4, 24]", "[4, 300]"))
    command = ["tune", str(study), f"out={finished / 'run'}", f"cache={finished / 'cache'}", *SMALL]
    assert main(command) == 5
    assert "was log_int: [4, 24], now log_int: [4, 300]" in capsys.readouterr().err
    small_study(finished)


def test_the_exported_file_can_be_scored(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "run" / "result.json").read_text("utf-8"))
    small = [s for s in SMALL if not s.startswith(("study.", "budget."))]
    command = [
        "score",
        f"lora={result['export']}",
        "dataset=quickstart",
        f"cache={finished / 'cache'}",
        f"out={finished}",
    ]
    assert main([*command, *small]) == 0
    scored = json.loads((finished / "score.json").read_text("utf-8"))
    assert set(scored) >= {"recipe", "weight", "score", "terms", "broken_constraints"}
    assert set(scored["usual"]) >= {"clip_i", "clip_t", "kid"} and next(iter(scored["leaks"])) in ("1girl", "1boy")
    assert scored["score"]["value"] == pytest.approx(result["best"]["score"]["value"], abs=1e-4)


def test_a_folder_of_files_is_ranked(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = Path(json.loads((finished / "run" / "result.json").read_text("utf-8"))["export"])
    tensors = load_file(lora)
    save_file({k: v * (0 if k.endswith("up.weight") else 1) for k, v in tensors.items()}, tmp_path / "no.safetensors")
    save_file(tensors, tmp_path / "yes.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not this")
    save_file(tensors, tmp_path / ".yes-x1.safetensors")  # of a writer that was killed
    small = [s for s in SMALL if not s.startswith(("study.", "budget."))]
    assert main(["score", f"lora={tmp_path}", "dataset=quickstart", f"cache={finished / 'cache'}", *small]) == 0
    scored = json.loads((tmp_path / "score.json").read_text("utf-8"))
    assert {one["recipe"] for one in scored} == {"yes.safetensors", "no.safetensors"}
    (zero,) = (one for one in scored if one["recipe"] == "no.safetensors")
    assert zero["terms"]["bleed_class"]["value"] == pytest.approx(0, abs=1e-6)
    assert Image.open(tmp_path / "score.png").size == (8 * 32, 3 * (32 + 14))
    printed = capsys.readouterr().out
    assert (
        "not scored: broken.safetensors" in printed
        and "standard metrics: clip_i" in printed
        and "yes.safetensors" in printed
    )


def test_a_folder_without_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", f"lora={tmp_path}", "dataset=quickstart"]) != 0
    assert "no .safetensors file" in capsys.readouterr().err


def test_diffusers_alone_draws_with_the_exported_file(finished: Path, tmp_path: Path) -> None:
    lora = json.loads((finished / "run" / "result.json").read_text("utf-8"))["export"]
    out = tmp_path / "alone.png"
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "sys.exit(any(name.partition('.')[0] == 'autolora' for name in sys.modules))"
    )
    arguments = [str(ALONE), str(BASE), lora, str(out), "1girl, banin, belam", "--each", "2"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=300)
    grid = np.asarray(Image.open(out), dtype=float)
    assert grid.shape == (128, 128, 3)
    assert np.abs(grid[:64] - grid[64:]).mean() > 1  # the upper row is the base model's


def test_one_recipe_is_trained_and_exported(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run killed before its export is proved is finished by the same command, and then left alone."""
    small = [s for s in SMALL if not s.startswith(("study.", "budget."))]
    command = ["train", "dataset=quickstart", "train.images_per_concept=24", f"cache={finished / 'cache'}", *small]
    command += [f"out={tmp_path}", "export.diffusers=true", "export.dtype=bfloat16"]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autolora.publish.roundtrip.verify_export", killed)
    assert main(command) == 130
    assert not list((tmp_path / "best").iterdir())
    monkeypatch.undo()
    assert main(command) == 0
    (lora,) = (tmp_path / "best").glob("*.safetensors")
    printed = capsys.readouterr().out
    assert str(lora) in printed and f"for diffusers: {tmp_path / 'best' / 'diffusers'}" in printed
    assert torch.bfloat16 in {tensor.dtype for tensor in load_file(lora).values()}
    written = lora.stat().st_mtime_ns
    assert main(command) == 0
    assert "is finished" in capsys.readouterr().out and lora.stat().st_mtime_ns == written


def ordinary_people(folder: Path) -> Path:
    """Pictures of anybody of the base model's world under one trigger: nothing to be told from what it draws."""
    rng = random.Random(0)
    for index in range(14):
        drawn = base_picture(rng)
        path = folder / "1_nobody" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(drawn.look, rng).save(path)
        path.with_suffix(".txt").write_text(f"1girl, nobody, {base_caption(drawn, rng)}")
    return folder


def test_an_unmeasurable_study_chooses_by_validation_loss_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = f"dataset.path={ordinary_people(tmp_path / 'pictures')}"
    good_renders = ("model.resolution=64", "model.render.search_inference_steps=8")  # bad ones can be told from images
    assert main(tune(tmp_path, pictures, "budget.n_trials=2", *SHORT_FINALS, *good_renders)) == 8
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["best"]["score"] is None and result["verdict"].startswith("unmeasured: validation loss")
    assert "unmeasurable" in result["best"]["unmeasurable"]["score"]
    curves = [json.loads((trial / "curve.json").read_text("utf-8")) for trial in trials_of(tmp_path)]
    losses = [sum(p["val_ratios"]) for curve in curves for p in curve]
    chosen = next(p for curve in curves for p in curve if sum(p["val_ratios"]) == min(losses))
    assert result["best"]["step"] == chosen["step"]
    assert "unmeasured" in (tmp_path / "run" / "report" / "index.html").read_text("utf-8")
    small = [s for s in SMALL if not s.startswith(("study.", "budget."))]
    command = ["score", f"lora={result['export']}", pictures, f"cache={tmp_path / 'cache'}", *small, *good_renders]
    assert main(command) == 5
    assert "unmeasurable" in capsys.readouterr().err


def test_a_study_starts_from_an_earlier_one(finished: Path, tmp_path: Path) -> None:
    """Its trials are its own; what was best in the earlier one is tried after the recipe as it is."""
    more = ["budget.n_trials=2", *SHORT_FINALS, f"warm_start={finished / 'run'}"]
    assert main(tune(tmp_path, *more, cache=finished)) == 0
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path / 'run' / 'study.db'}")
    assert [trial.state.is_finished() for trial in study.trials] == [True, True]
    then = optuna.load_study(study_name="small", storage=f"sqlite:///{finished / 'run' / 'study.db'}").trials
    assert study.trials[1].user_attrs["warm_start"].startswith(f"{finished / 'run'}, trial ")
    assert study.trials[1].params in [trial.params for trial in then]
    assert sum(json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["trials"].values()) == 2


@pytest.mark.parametrize("command", ["report", "export", "check"])
def test_other_commands_on_a_finished_study(command: str, finished: Path) -> None:
    assert main([command, *tune(finished)[1:]]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be sent to a process on Windows")
def test_a_killed_study_is_continued_by_the_same_command(tmp_path: Path, finished: Path) -> None:
    """SIGTERM after the first checkpoint; the same command finishes, and its trial is what it would have been."""
    command = tune(tmp_path, "budget.n_trials=1", *SHORT_FINALS, cache=finished)
    process = processes.start(main, command, errors=tmp_path / "errors")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "run").glob("trials/*/latest.pt")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.join(240)
    assert process.exitcode == 143
    errors = (tmp_path / "errors").read_text()
    assert "same command again to continue" in errors and "Traceback" not in errors
    interrupted = json.loads(next((tmp_path / "run").glob("trials/*/curve.json")).read_text("utf-8"))
    assert len(interrupted) == 1
    assert main(command) == 0
    (curve,) = [json.loads((trial / "curve.json").read_text("utf-8")) for trial in trials_of(tmp_path)]
    assert curve[0] == interrupted[0] and len(curve) == 2
    assert final_state(tmp_path) in [final_state(finished, trial) for trial in trials_of(finished)]


def test_no_space_left_stops_cleanly(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(trial_folder, "save_file", full)
    command = tune(tmp_path, "budget.n_trials=1", *SHORT_FINALS, cache=finished)
    assert main(command) == 7
    assert "no space left" in capsys.readouterr().err
    assert not [p for p in (tmp_path / "run").rglob("*") if p.name.startswith(".")]
    monkeypatch.undo()
    assert main(command) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert final_state(tmp_path) in [final_state(finished, trial) for trial in trials_of(finished)]


def test_a_study_killed_between_its_last_checkpoint_and_its_verdict(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = tune(tmp_path, "budget.n_trials=1", *SHORT_FINALS, cache=finished)
    monkeypatch.setattr(optuna.Study, "tell", killed)
    assert main(command) == 130
    monkeypatch.undo()
    assert main(command) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    (curve,) = [json.loads((trial / "curve.json").read_text("utf-8")) for trial in trials_of(tmp_path)]
    assert result["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert len(curve) == 2


def test_two_workers_share_a_study_and_a_third_finds_nothing_left(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = tune(tmp_path, "budget.n_trials=4", *SHORT_FINALS, cache=finished)
    storage = f"storage=journal:///{tmp_path / 'shared.log'}"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main([*command, storage, "workers=2"]) == 0
    study = optuna.load_study(study_name="small", storage=open_storage(storage.removeprefix("storage="), print))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert not (tmp_path / "run" / "study.db").exists()
    log = (tmp_path / "run" / "workers" / "2.log").read_text()
    assert "no trial is left" in log and "Traceback" not in log
    assert storage in (tmp_path / "run" / "report" / "index.html").read_text("utf-8")
    capsys.readouterr()
    assert main(["worker", "study=small", storage]) == 0  # from anywhere: the study knows how it was started
    assert "no trial is left" in capsys.readouterr().out
    assert main(["worker", "study=large", storage]) == 5
    assert "it has small" in capsys.readouterr().err


def test_a_trial_that_does_not_fit_into_memory_is_skipped_and_the_study_goes_on(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    advance, first = TrainingSlot.advance, list[str]()

    def full(slot: TrainingSlot, *step: Any) -> None:
        first.append(slot.name)
        if slot.name == first[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 11 GiB.")
        advance(slot, *step)

    monkeypatch.setattr(TrainingSlot, "advance", full)
    assert main(tune(tmp_path, "budget.n_trials=2", *SHORT_FINALS, cache=finished)) == 0
    said = capsys.readouterr().err
    assert first.count(first[0]) == 1 and "trial 0 failed" in said
    found = optuna.load_study(study_name="small", storage=open_storage(storage_url(None, tmp_path / "run"), print))
    assert [trial.state.name for trial in found.trials] == ["FAIL", "COMPLETE"]
    assert found.trials[0].user_attrs["reason"].startswith("skipped: the GPU's memory is full (CUDA out of memory")
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["trials"]["failed"] == 1

"""The command line: help, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autolora.cli import COMMANDS, main
from autolora.commands.output import Output
from autolora.commands.request import Request
from autolora.config import compose
from autolora.paperdoll.world import write_dataset
from autolora.settings import build_settings
from tests.data.folders import write_concepts


@pytest.mark.parametrize("arguments", [[], ["--help"], *([c, "--help"] for c in COMMANDS)])
def test_help_reads_well(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "autolora" in printed and len(printed.splitlines()) > 2


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from autolora.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_cfg_job_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "quickstart", "budget.n_trials=4", "--cfg", "job"]) == 0
    printed = capsys.readouterr().out
    assert "n_trials: 4" in printed and "recipe_name: doll-adamw" in printed


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_password_of_a_storage_is_not_printed(
    by: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+psycopg://mona:hush@db/lora"
    if by == "environment":
        monkeypatch.setenv("AUTOLORA_STORAGE", url)
    assert main(["tune", "quickstart", *([f"storage={url}"] if by == "argument" else []), "--cfg", "job"]) == 0
    assert "storage: postgresql+psycopg://mona:***@db/lora" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tuna"], 2, "unknown command `tuna`"),
        (["tune", "nope"], 2, "study `nope` not found"),
        (["tune", "quickstart", "train.epochz=3"], 2, "did you mean `train.epochs`"),
        (["tune", "quickstart", "--fast"], 2, "unknown option --fast"),
        (["tune", "quickstart", "workers=none"], 2, "workers must be auto"),
        (["tune", "quickstart", "study.grace_period=10"], 2, "below study.grace_period"),
        (["train", "storage=journal"], 2, "has no storage"),
        (["worker"], 2, "study=NAME storage=URL"),
        (["worker", "study=mona", "storage=postgresql+psycopg://a:hush@127.0.0.1:1/b"], 5, "a:***@127.0.0.1"),
        (["worker", "quickstart", "out=/no/such/run"], 5, "`autolora tune quickstart` first"),
        (["train"], 3, "no dataset given"),
        (["train", "dataset.path=/no/such/folder"], 3, "/no/such/folder"),
        (["train", "dataset=quickstart", "model.path=/no/such/model"], 4, "/no/such/model"),
        (["train", "dataset=quickstart", "scoring.encoder=local-dir:/no/such"], 2, "open_clip"),
        (["score", "dataset=quickstart"], 2, "lora=FILE"),
        (["score", "dataset=quickstart", "lora=/no/such.safetensors"], 6, "does not exist"),
        (["report", "quickstart", "out=/no/such/run"], 5, "no study quickstart in /no/such/run"),
        (["captions", "dataset.path=~zork/mona"], 2, "there is no user zork"),
        (["tag", "dataset.path=~zork"], 2, "there is no user zork"),
        (["train", "dataset=quickstart", "dataset.reg_data_dir=~zork"], 2, "there is no user zork"),
        (["train", "dataset=quickstart", "init_lora=~zork.safetensors"], 2, "there is no user zork.safetensors"),
        (["train", "dataset=quickstart", "model=sd15", "model.path=~zork/sd15"], 2, "there is no user zork"),
        (["check", "dataset=quickstart", "cache=~zork"], 2, "there is no user zork"),
        (["paperdoll", "dataset", "~zork/doll"], 2, "there is no user zork"),
        (["compare", "~zork/runs"], 2, "there is no user zork"),
        (["paperdoll", "dataset", "/tmp", "--seed", "1"], 3, "not an empty folder"),
    ],
)
def test_mistakes_are_one_line_with_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between two tries to reach a database
    assert main(arguments) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_bad_pictures_are_listed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "doll", seed=0, outfits=1, images_per_outfit=6)
    pictures = sorted((tmp_path / "doll").rglob("*.png"))
    pictures[0].with_suffix(".txt").unlink()
    pictures[1].with_suffix(".txt").write_text(" \n")
    pictures[2].write_bytes(pictures[2].read_bytes()[:50])
    out = tmp_path / "run"
    assert main(["train", f"dataset.path={tmp_path / 'doll'}", f"out={out}"]) == 3
    printed = capsys.readouterr().err
    assert all(picture.name in printed for picture in pictures[:3])
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "place"),
    [("train", "out={d}"), ("check", "out={d}/runs"), ("train", "cache={d}/1_a/cache"), ("tune", "out={d}/1_a")],
)
def test_no_result_is_written_among_the_images(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_concepts(tmp_path / "d", {"1_a": [f"mona, 1girl, place {i}" for i in range(3)]})
    before = sorted(dataset.rglob("*"))
    places = [f"dataset.path={dataset}", "dataset.trigger=mona", place.format(d=dataset)]
    assert main([command, *places]) == 2
    assert "lies in the dataset's own folder" in capsys.readouterr().err and sorted(dataset.rglob("*")) == before


def test_results_about_a_file_lie_beside_it_but_not_among_the_images(tmp_path: Path) -> None:
    dataset = write_concepts(tmp_path / "d", {"1_a": [f"mona, 1girl, place {i}" for i in range(3)]})

    def beside(file: Path, *more: str) -> Path:
        request = Request(build_settings(compose("train", [f"dataset.path={dataset}", "dataset.trigger=mona", *more])))
        return request.beside(file)

    assert beside(dataset / "mine.safetensors") == Path("runs/mine-d")
    assert beside(dataset / "_loras" / "mine.safetensors") == dataset / "_loras"  # which is not read
    assert beside(tmp_path / "mine.safetensors") == tmp_path
    assert beside(dataset / "mine.safetensors", f"out={tmp_path / 'o'}") == tmp_path / "o"


def test_an_image_size_that_is_no_model_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert main(["train", "dataset=quickstart", f"model.path={tmp_path / 'folder'}"]) == 4
    assert "model_index.json" in capsys.readouterr().err


def test_too_little_memory_is_one_line_that_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 11 GiB.")

    monkeypatch.setattr("autolora.commands.train.train", full)
    assert main(["train", "dataset=quickstart"]) == 9
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "Tried to allocate 2.00 GiB" in said
    assert "model.gradient_checkpointing=true" in said


@pytest.mark.parametrize(("encoding", "seen"), [("cp1252", "?"), ("ascii", "?"), ("utf-8", "笑")])
def test_a_console_of_any_encoding_shows_what_it_can(
    encoding: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_concepts(tmp_path / "日本", {"": [f"mona, 1girl, 1girl, 笑, place {i}" for i in range(3)]})
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert main(["captions", f"dataset.path={dataset}", "dataset.trigger=mona"]) == 0
    assert f"+ mona, 1girl, {seen}, place 1" in written.getvalue().decode(encoding)
    Output(json=True).event("trial", {"caption": "笑", "file": "mon\udce9"})
    assert json.loads(written.getvalue().decode(encoding).splitlines()[-1])["caption"] == "笑"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m autolora.cli tune quickstart --cfg job; echo code $? >&2"
    found = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=False)
    assert "code 0" in found.stderr and "Traceback" not in found.stderr and "BrokenPipe" not in found.stderr


def test_an_optimizer_that_cannot_run_here_is_refused_before_anything_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"out={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}"]
    assert main(["train", "dataset=quickstart", "optimizer=adamw8bit", *places]) == 2
    assert "NVIDIA GPUs only" in capsys.readouterr().err and not (tmp_path / "cache").exists()


def test_what_an_adapter_should_not_be_is_said_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a study also at the ends of its ranges; each line once."""
    monkeypatch.setattr(Request, "check_model", lambda _: None)  # the missing model stops the command, but later
    no_model = ["dataset=quickstart", f"model.path={tmp_path / 'none'}"]
    assert main(["train", "recipe=guide-loha", "adapter.dim=48", *no_model]) == 4
    assert "guide-loha: LoHa of dim 48: above 32" in capsys.readouterr().err
    study = tmp_path / "mine" / "loha.yaml"
    study.parent.mkdir()
    study.write_text(
        "# @package _global_\nstudy: {name: loha, recipes: {guide-loha: {adapter.dim: {choice: [16, 32, 64]}, "
        "adapter.alpha: {choice: [8, 16]}}, guide-ia3: {optimizer.lr: {log: [0.001, 0.01]}}}}\n"
    )
    assert main(["tune", str(study), *no_model, f"out={tmp_path / 'run'}"]) == 4
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said[:-1]] == ["guide-ia3", "guide-loha"]
    assert "LoHa of dim 64: above 32" in said[1]

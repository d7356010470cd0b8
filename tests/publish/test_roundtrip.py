"""Exported files get their names once they are verified, and a plain LoRA beside them is scored: on the test world."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autolora.adapters.base import State
from autolora.adapters.deltas import distance
from autolora.adapters.formats import layer_weights
from autolora.adapters.read import read_lora, read_metadata
from autolora.cli import main
from autolora.config import compose
from autolora.errors import ExportError
from autolora.export.diffusers_copy import FOLDER, NAME
from autolora.export.settings import ExportSettings
from autolora.export.write import as_in_file, export_lora
from autolora.models.load import load_model
from autolora.models.stable_diffusion import StableDiffusion
from autolora.publish import export, roundtrip
from autolora.settings import build_settings
from autolora.study.finals.evaluator import CandidateEvaluator
from autolora.study.finals.finalist import Finalist
from autolora.study.finals.finals_runner import FinalsRunner
from tests.export.test_kinds import FACTS, KINDS, trained
from tests.export.world import dataset as world
from tests.export.world import run
from tests.study.search.test_tune import SMALL

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

SETTINGS = [s for s in SMALL if not s.startswith(("study.", "budget."))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "loha", "dora", "lokr"])
def test_an_adapter_as_its_file_holds_it(
    kind: str, dtype: torch.dtype, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    state, _ = trained(tiny_model, kind)
    path = export_lora(state, run(KINDS[kind]), world(), tiny_model, tmp_path, "a", facts=FACTS, dtype=dtype).path
    rounded, read = as_in_file(state, tiny_model, dtype), read_lora(path, tiny_model)
    assert rounded.keys() == read.keys() and all(torch.equal(rounded[key], tensor) for key, tensor in read.items())
    assert any(not torch.equal(rounded[key], tensor.float()) for key, tensor in state.items())


def test_the_full_evaluation_is_of_the_rounded_adapter(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored evaluation of another rounding, or of none, is not taken for it."""
    state, _ = trained(tiny_model, "lora")
    loaded: list[State] = []
    context = SimpleNamespace(adapter=SimpleNamespace(load=loaded.append), model=tiny_model)
    session: Any = SimpleNamespace(context=context, export=ExportSettings("bfloat16"), scorer=True)
    scorer: Any = SimpleNamespace(only=lambda *_: None)
    runner = object.__new__(FinalsRunner)
    runner.evaluator = CandidateEvaluator(session, scorer, None, None)  # type: ignore[arg-type]
    runner.clock = SimpleNamespace(finals_left=lambda: math.inf)  # type: ignore[assignment]
    monkeypatch.setattr("autolora.study.finals.finals_runner.evaluation_seconds", lambda _: 0.0)
    stored = {"full evaluation of a@1": {}, "full evaluation of a@1 in float16": {}}
    runner.study = SimpleNamespace(user_attrs=stored)  # type: ignore[assignment]
    trial_folder = SimpleNamespace(key=lambda _: "a@1", load=lambda _: state)
    with pytest.raises(AttributeError, match="render"):  # at its first render
        runner.full_evaluation(Finalist(None, trial_folder, None))  # type: ignore[arg-type]
    rounded = as_in_file(state, tiny_model, torch.bfloat16)
    assert all(torch.equal(loaded[0][key], tensor) for key, tensor in rounded.items())


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A short run of LoHa."""
    tmp = tmp_path_factory.mktemp("loha")
    short = ["train.images_per_concept=16", "train.epochs=1", "optimizer.lr=0.05", "adapter.dim=4"]
    return ["train", "recipe=guide-loha", "dataset=quickstart", f"out={tmp}", f"cache={tmp}", *SETTINGS, *short]


@pytest.fixture(scope="module")
def best(command: list[str]) -> Path:
    return Path(command[3].removeprefix("out=")) / "best"


def test_a_file_that_is_not_what_was_trained_is_not_exported(
    command: list[str], best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any) -> None:
        path = arguments[2]
        assert path.is_file()
        raise ExportError(f"{path}: a layer differs")

    best.mkdir()
    (best / "mine.txt").write_text("stays")
    monkeypatch.setattr(roundtrip, "verify_export", wrong)
    assert main(command) == 6
    assert f"{best}/banin.safetensors: a layer differs; nothing was exported" in capsys.readouterr().err
    assert [path.name for path in best.iterdir()] == ["mine.txt"]


def test_the_plain_lora_is_scored(
    command: list[str], best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rank is too small to be the same; the files of an earlier export, which was killed, are removed."""
    monkeypatch.setattr(export, "PLAIN_LORA_DIMS", (1,))
    for name in (".new-x1_45678/banin.safetensors", ".banin-x1_45678.safetensors"):
        (best / name).parent.mkdir(parents=True, exist_ok=True)
        (best / name).write_bytes(b"half")
    assert main(command) == 0
    assert not [path for path in best.iterdir() if path.name.startswith(".")]
    result = json.loads((best.parent / "score.json").read_text("utf-8"))
    plain = result["plain"]
    assert sorted(path.name for path in best.glob("*.safetensors")) == ["banin-lora.safetensors", "banin.safetensors"]
    assert plain["path"] == str(best / "banin-lora.safetensors") and 0 < plain["distance"] < 1
    assert read_metadata(Path(plain["path"]))["autolora.twin_distance"] == f"{plain['distance']:.4f}"
    assert plain["score"]["value"] != pytest.approx(result["score"]["value"], abs=0.001)
    assert plain["score"]["low"] <= plain["score"]["value"] <= plain["score"]["high"]
    output = capsys.readouterr().out
    score = f"score {plain['score']['value']:.3f}"
    assert f"{plain['distance']:.1%} off, {score}), for programs other than A1111, ComfyUI" in output


def test_a_plain_lora_has_none_beside_it_nor_one_of_an_earlier_export(tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.mkdir()
    for name in ("banin-lora.safetensors", "banin-lora.json", "banin-lora.png", "other-lora.safetensors"):
        (best / name).write_bytes(b"earlier")
    (best / FOLDER).mkdir()
    (best / FOLDER / NAME).write_bytes(b"earlier")
    short = ["train.images_per_concept=16", "train.epochs=1", "adapter.dim=4"]
    assert main(["train", "dataset=quickstart", f"out={tmp_path}", f"cache={tmp_path}", *SETTINGS, *short]) == 0
    made = {"banin.safetensors", "banin.json", "banin.png", "other-lora.safetensors"}
    assert {path.name for path in best.iterdir() if path.suffix in (".safetensors", ".json", ".png")} == made
    assert not [*(best / FOLDER).iterdir()]


def test_training_starts_from_a_file_of_any_format(tmp_path: Path) -> None:
    """At a rate of next to nothing the new LoRA is the old one, out of each of the three formats."""
    short = [*SETTINGS, "dataset=quickstart", f"cache={tmp_path}", "train.images_per_concept=16", "train.epochs=1"]
    first = ["adapter.dim=4", "optimizer.lr=0.01", "export.diffusers=true"]
    assert main(["train", f"out={tmp_path / 'first'}", *short, *first]) == 0
    kohya = tmp_path / "first" / "best" / "banin.safetensors"
    diffusers = kohya.parent / FOLDER / NAME
    peft = tmp_path / "peft" / "adapter_model.safetensors"
    peft.parent.mkdir()
    layers = load_file(diffusers)
    save_file({f"base_model.model.{key.removeprefix('unet.')}": tensor for key, tensor in layers.items()}, peft)
    (peft.parent / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    model = load_model(build_settings(compose("train", [])).model)
    trained, weights = read_lora(kohya, model), layer_weights(model.modules)
    for file in (kohya, diffusers, peft):
        out = tmp_path / f"from {file.parent.name}"
        assert main(["train", f"out={out}", *short, f"init_lora={file}", "adapter.dim=4", "optimizer.lr=1e-9"]) == 0
        made = out / "best" / "banin.safetensors"
        assert distance(read_lora(made, model), trained, weights) < 2e-3  # half precision
        settings = json.loads(read_metadata(made)["autolora.settings"])
        assert settings["init_lora"] == hashlib.sha256(file.read_bytes()).hexdigest()

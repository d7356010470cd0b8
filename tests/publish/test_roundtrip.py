"""An export takes its names when it is proved, and another kind's plain twin is scored: on the embedded world."""

from __future__ import annotations

import hashlib
import json
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
from autolora.config import compose, model_settings
from autolora.errors import ExportError
from autolora.export.diffusers_copy import FOLDER, NAME
from autolora.export.settings import ExportSettings
from autolora.export.write import as_in_file, export_lora
from autolora.models.load import load_model
from autolora.models.stable_diffusion import StableDiffusion
from autolora.publish import export as export_best
from autolora.publish import roundtrip as proof
from autolora.scoring.intervals import Estimate
from autolora.study.finals.finalist import Finalist
from autolora.study.finals.finals_runner import FinalsRunner
from tests.export.test_kinds import FACTS, KINDS, trained
from tests.export.world import dataset as world
from tests.export.world import run
from tests.study.search.test_tune import SMALL

SETTINGS = [s for s in SMALL if not s.startswith(("study.", "budget."))]


def scripted(*scores: float) -> Any:
    """A workbench whose adapter scores these, one after the other."""
    turns = iter(scores)
    context = SimpleNamespace(adapter=SimpleNamespace(load=lambda state: None), model=None)
    return SimpleNamespace(
        context=context,
        export=ExportSettings(),
        score=lambda *_: SimpleNamespace(score=Estimate(next(turns), 0.0, 1.0)),
        left=lambda: len(list(turns)),
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.70001], []),  # what was judged, to its last digit
        ([0.71, 0.71], ["the LoRA scores 0.710 here, where it was judged 0.700: machines render differently"]),
    ],
)
def test_the_file_scores_what_was_judged(scores: list[float], said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "as_in_file", lambda *_: {})
    heard: list[str] = []
    session, bars = scripted(*scores), SimpleNamespace(say=heard.append)
    proof.check_score(session, {}, Path("a"), None, bars, 0.7)  # type: ignore[arg-type]
    assert heard == said and session.left() == 0


def test_a_file_that_scores_otherwise_here_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "as_in_file", lambda *_: {})
    with pytest.raises(ExportError, match=r"a scores 0\.70100 after reloading, the trial 0\.70000"):
        proof.check_score(scripted(0.701, 0.7), {}, Path("a"), None, None, 0.7)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "loha", "dora", "lokr"])
def test_an_adapter_as_its_file_holds_it(
    kind: str, dtype: torch.dtype, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    state, _ = trained(tiny_model, kind)
    path = export_lora(state, run(KINDS[kind]), world(), tiny_model, tmp_path, "a", facts=FACTS, dtype=dtype).path
    held, read = as_in_file(state, tiny_model, dtype), read_lora(path, tiny_model)
    assert held.keys() == read.keys() and all(torch.equal(held[key], tensor) for key, tensor in read.items())
    assert any(not torch.equal(held[key], tensor.float()) for key, tensor in state.items())


def test_the_last_word_is_about_that(tiny_model: StableDiffusion) -> None:
    """One that was said of another rounding, or of none, is not taken for it."""
    state, _ = trained(tiny_model, "lora")
    loaded: list[State] = []
    stage = object.__new__(FinalsRunner)
    context = SimpleNamespace(adapter=SimpleNamespace(load=loaded.append), model=tiny_model)
    stage.session = SimpleNamespace(context=context, export=ExportSettings("bfloat16"), scorer=True)  # type: ignore[assignment]
    stage.study = SimpleNamespace(user_attrs={"last word on a@1": {}, "last word on a@1 in float16": {}})  # type: ignore[assignment]
    record = SimpleNamespace(key=lambda _: "a@1", load=lambda _: state)
    with pytest.raises(AttributeError, match="render"):  # as soon as it wants to
        stage.full_evaluation(Finalist(None, record, None))  # type: ignore[arg-type]
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
    def wrong(*given: Any) -> None:
        exported, twin = given[2:4]
        assert exported.path.is_file() and twin.path.is_file()
        raise ExportError(f"{exported.path}: a layer differs")

    best.mkdir()
    (best / "mine.txt").write_text("stays")
    monkeypatch.setattr(proof, "prove", wrong)
    assert main(command) == 6
    assert f"{best}/banin.safetensors: a layer differs; nothing was exported" in capsys.readouterr().err
    assert [path.name for path in best.iterdir()] == ["mine.txt"]


def test_its_plain_twin_is_scored(
    command: list[str], best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a rank too small to be the same; after what an earlier export left, which was killed."""
    monkeypatch.setattr(export_best, "TWIN_DIMS", (1,))
    for name in (".new-x1/banin.safetensors", ".banin-x1.safetensors"):
        (best / name).parent.mkdir(parents=True, exist_ok=True)
        (best / name).write_bytes(b"half")
    assert main(command) == 0
    assert not [path for path in best.iterdir() if path.name.startswith(".")]
    found = json.loads((best.parent / "score.json").read_text("utf-8"))
    twin = found["plain"]
    assert sorted(path.name for path in best.glob("*.safetensors")) == ["banin-lora.safetensors", "banin.safetensors"]
    assert twin["path"] == str(best / "banin-lora.safetensors") and 0 < twin["distance"] < 1
    assert read_metadata(Path(twin["path"]))["autolora.twin_distance"] == f"{twin['distance']:.4f}"
    assert twin["score"]["value"] != pytest.approx(found["score"]["value"], abs=0.001)
    assert twin["score"]["low"] <= twin["score"]["value"] <= twin["score"]["high"]
    said = capsys.readouterr().out
    score = f"score {twin['score']['value']:.3f}"
    assert f"{twin['distance']:.1%} off, {score}), for programs other than A1111, ComfyUI" in said


def test_a_plain_lora_has_no_twin_nor_one_of_an_earlier_export(tmp_path: Path) -> None:
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


def test_training_goes_on_from_a_file_of_any_format(tmp_path: Path) -> None:
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
    model = load_model(model_settings(compose("train", [])))
    trained, weights = read_lora(kohya, model), layer_weights(model.modules)
    for file in (kohya, diffusers, peft):
        out = tmp_path / f"from {file.parent.name}"
        assert main(["train", f"out={out}", *short, f"init_lora={file}", "adapter.dim=4", "optimizer.lr=1e-9"]) == 0
        made = out / "best" / "banin.safetensors"
        assert distance(read_lora(made, model), trained, weights) < 2e-3  # half precision
        settings = json.loads(read_metadata(made)["autolora.settings"])
        assert settings["init_lora"] == hashlib.sha256(file.read_bytes()).hexdigest()

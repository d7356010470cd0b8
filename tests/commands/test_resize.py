"""A LoRA exported, scored, made smaller and trained on from: the same all the way, on the embedded world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autolora.adapters.adapter_set import attach
from autolora.adapters.formats import to_kohya
from autolora.cli import main
from autolora.commands import resize as resize_file
from autolora.commands.resize import Resized
from autolora.config import build_run, compose
from autolora.export.write import in_dtype
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.scoring.intervals import Estimate
from autolora.train.init_from_lora import starting_state
from tests.study.search.test_tune import SMALL

SETTINGS = [s for s in SMALL if not s.startswith(("study.", "budget."))]
NOISE = 0.005  # of a score, by half precision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a LoRA of dim 4 was trained and exported, and its file made smaller."""
    tmp = tmp_path_factory.mktemp("resize")
    train = ["train", "dataset=quickstart", f"out={tmp / 'run'}", "adapter.dim=4", "adapter.alpha=4", *SETTINGS]
    assert main([*train, "optimizer.lr=0.01", "train.epochs=1", f"cache={tmp / 'cache'}"]) == 0
    assert main(["export", f"resize={lora(tmp)}", "dims=[4,1]", *shared(tmp)]) == 0
    return tmp


def shared(tmp: Path) -> list[str]:
    return ["dataset=quickstart", f"cache={tmp / 'cache'}", *SETTINGS]


def lora(tmp: Path) -> Path:
    return next(path for path in (tmp / "run" / "best").glob("*.safetensors") if "-dim" not in path.stem)


def test_a_single_run_leaves_a_model_card_too(folder: Path) -> None:
    words = (lora(folder).parent / "model_card.md").read_text("utf-8")
    assert 'license: "apache-2.0"' in words and f"`{lora(folder).name}`" in words
    assert list((lora(folder).parent / "samples").glob("*.png"))


def test_the_same_rank_scores_the_same_and_a_smaller_one_does_not(folder: Path) -> None:
    whole, four, one = json.loads((lora(folder).parent / "resize.json").read_text("utf-8"))
    assert [found["dim"] for found in (whole, four, one)] == [None, 4, 1]
    assert four["score"]["value"] == pytest.approx(whole["score"]["value"], abs=NOISE) and four["kept"]
    assert one["score"]["value"] != pytest.approx(whole["score"]["value"], abs=NOISE)
    assert one["megabytes"] < 0.6 * whole["megabytes"]
    assert all(Path(found["path"]).is_file() for found in (whole, four, one))


def test_a_file_that_was_resized_and_trained_on_from_scores_the_same(folder: Path, tmp_path: Path) -> None:
    """`score` reads what `resize` wrote, and what starts from that at another rank and alpha, written again."""
    _, four, _ = json.loads((lora(folder).parent / "resize.json").read_text("utf-8"))
    model = load_model(ModelSettings())
    run = build_run(compose("train", ["adapter.dim=6", "adapter.alpha=2", f"init_lora={four['path']}"]))
    adapter = attach(model.modules, run.adapter)
    try:
        adapter.start(0, run.adapter, torch.Generator().manual_seed(0))
        started = starting_state(run, adapter.state(0), model)
    finally:
        adapter.detach()
    assert max(len(tensor) for key, tensor in started.items() if "lora_down" in key) == 6
    save_file(in_dtype(to_kohya(started, "sd1"), torch.float16), tmp_path / "again.safetensors")
    (tmp_path / "resized.safetensors").write_bytes(Path(four["path"]).read_bytes())
    assert main(["score", f"lora={tmp_path}", *shared(folder)]) == 0
    scored = {one["recipe"]: one["score"]["value"] for one in json.loads((tmp_path / "score.json").read_text("utf-8"))}
    assert scored["resized.safetensors"] == pytest.approx(four["score"]["value"], abs=1e-6)
    assert scored["again.safetensors"] == pytest.approx(four["score"]["value"], abs=NOISE)


def test_without_ranks_the_smallest_is_sought(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scripted(dim: int | None, path: Path, *_: object) -> Resized:
        kept = dim is None or dim > 2
        return Resized(dim, path, Estimate(0.5, 0.4, 0.6) if kept else Estimate(0.1, 0.0, 0.2), [], kept)

    monkeypatch.setattr(resize_file, "_scored", scripted)
    monkeypatch.setattr(resize_file, "final_scorer", lambda *_: None)
    assert main(["export", f"resize={lora(folder)}", f"out={tmp_path}", *shared(folder)]) == 0
    assert "smallest that keeps the score: dim 3" in capsys.readouterr().out
    found = json.loads((tmp_path / "resize.json").read_text("utf-8"))
    assert [(one["dim"], one["kept"]) for one in found] == [(None, True), (3, True), (2, False)]
    assert {path.name.partition("-dim")[2] for path in tmp_path.glob("*.safetensors")} == {
        "3.safetensors",
        "2.safetensors",
    }


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [(["dims=[64]"], 2, "expected ranks from 1 to 4"), (["resize=/no/such.safetensors"], 6, "does not exist")],
)
def test_mistakes_are_told_before_anything_is_rendered(
    more: list[str], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"resize={lora(folder)}", *shared(folder), *more]) == code
    assert said in capsys.readouterr().err

"""A LoRA that is exported, scored, resized and continued keeps its score, on the synthetic test world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autolora.adapters.adapter_set import attach
from autolora.adapters.formats import to_kohya
from autolora.cli import main
from autolora.config import compose
from autolora.export.write import in_dtype
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.publish import resize
from autolora.publish.resize import ResizedFile
from autolora.scoring.intervals import Estimate
from autolora.settings import build_run
from autolora.train.init_from_lora import starting_state
from tests.study.search.test_tune import SMALL

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

SETTINGS = [
    *(s for s in SMALL if not s.startswith(("study.", "budget."))),
    "model.resolution=64",
    "model.render.guidance_scale=4",
]
NOISE = 0.005  # in a score, by half precision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a LoRA of dim 4 was trained, exported and resized."""
    tmp = tmp_path_factory.mktemp("resize")
    train = ["train", "dataset=quickstart", f"out={tmp / 'run'}", "adapter.dim=4", "adapter.alpha=4", *SETTINGS]
    assert main([*train, "optimizer.lr=0.01", "train.epochs=1", f"cache={tmp / 'cache'}"]) == 0
    assert main(["resize", str(lora(tmp)), "dims=[4,1]", *shared(tmp)]) == 0
    return tmp


def shared(tmp: Path) -> list[str]:
    return ["dataset=quickstart", f"cache={tmp / 'cache'}", *SETTINGS]


def lora(tmp: Path) -> Path:
    return next(path for path in (tmp / "run" / "best").glob("*.safetensors") if "-dim" not in path.stem)


def test_a_single_run_has_a_model_card(folder: Path) -> None:
    card = (lora(folder).parent / "model_card.md").read_text("utf-8")
    assert 'license: "apache-2.0"' in card and f"`{lora(folder).name}`" in card
    assert list((lora(folder).parent / "samples").glob("*.png"))


def test_the_same_rank_scores_the_same_and_a_smaller_one_does_not(folder: Path) -> None:
    original, four, one = json.loads((lora(folder).parent / "resize.json").read_text("utf-8"))
    assert [file["dim"] for file in (original, four, one)] == [None, 4, 1]
    assert four["score"]["value"] == pytest.approx(original["score"]["value"], abs=NOISE) and four["kept"]
    assert one["score"]["value"] != pytest.approx(original["score"]["value"], abs=NOISE)
    assert one["megabytes"] < 0.6 * original["megabytes"]
    assert all(Path(file["path"]).is_file() for file in (original, four, one))


def test_a_resized_and_a_continued_file_score_the_same(folder: Path, tmp_path: Path) -> None:
    """`score` reads what `resize` wrote, and the same LoRA after a start from it at another rank and alpha."""
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
    assert main(["score", str(tmp_path), *shared(folder)]) == 0
    results = json.loads((tmp_path / "score.json").read_text("utf-8"))
    scored = {result["recipe"]: result["score"]["value"] for result in results}
    assert scored["resized.safetensors"] == pytest.approx(four["score"]["value"], abs=1e-6)
    assert scored["again.safetensors"] == pytest.approx(four["score"]["value"], abs=NOISE)


def test_without_ranks_the_smallest_is_searched_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def score_file(dim: int | None, path: Path, *_: object) -> ResizedFile:
        keeps_score = dim is None or dim > 2
        estimate = Estimate(0.5, 0.4, 0.6) if keeps_score else Estimate(0.1, 0.0, 0.2)
        return ResizedFile(dim, path, estimate, [], keeps_score)

    monkeypatch.setattr(resize, "_score_file", score_file)
    monkeypatch.setattr(resize, "final_scorer", lambda *_: None)
    assert main(["resize", str(lora(folder)), f"out={tmp_path}", *shared(folder)]) == 0
    assert "smallest that keeps the score: dim 3" in capsys.readouterr().out
    files = json.loads((tmp_path / "resize.json").read_text("utf-8"))
    assert [(file["dim"], file["kept"]) for file in files] == [(None, True), (3, True), (2, False)]
    assert {path.name.partition("-dim")[2] for path in tmp_path.glob("*.safetensors")} == {
        "3.safetensors",
        "2.safetensors",
    }


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [(["dims=[64]"], 2, "expected ranks from 1 to 4"), (["lora=/no/such.safetensors"], 6, "does not exist")],
)
def test_mistakes_are_reported_before_anything_is_rendered(
    more: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resize", f"lora={lora(folder)}", *shared(folder), *more]) == code
    assert message in capsys.readouterr().err

"""The public API: recipes and settings from Python, and the example that trains with it."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

import pytest

import autolora
from autolora import config
from autolora.errors import ConfigError
from autolora.optim.optimizers import Adafactor
from autolora.progress import Bars, ProgressUpdate
from autolora.settings import build_run, build_settings

pytestmark = pytest.mark.slow  # trains, or starts a server, a browser or processes

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_from_python.py"


def test_a_recipe_is_the_one_of_the_command_line() -> None:
    run = autolora.recipe("guide-prodigy", dim=16, images_per_concept=300, absorb_tags="all", scale_weight_norms=None)
    overrides = ["adapter.dim=16", "train.images_per_concept=300", "captions.absorb_tags=all"]
    assert run == build_run(config.compose("train", ["recipe=guide-prodigy", *overrides]))
    other = autolora.recipe("guide-adamw", adapter="loha", optimizer="adafactor", **{"train.seed": 3})
    assert type(other.adapter).__name__ == "LoHa" and isinstance(other.optimizer, Adafactor) and other.train.seed == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dimm": 8}, "`dimm` of a recipe: it has no such key"),
        ({"train.dimm": 8}, "a recipe has no key `train.dimm`"),
        ({"kind": "lora"}, r"`kind` of a recipe: write it whole: adapter\.kind, optimizer\.kind, schedule\.kind"),
        ({"dim": "many"}, r"adapter\.dim: expected int, got 'many'"),
        ({"adapter": "lorra"}, "Could not find 'adapter/lorra'"),
    ],
)
def test_mistakes_in_a_recipe_are_told(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        autolora.recipe("guide-adamw", **values)


def test_settings_are_those_of_the_command_line(tmp_path: Path) -> None:
    values = {"budget.n_trials": 5, "scoring.weights": [0.8, 1.0], "quiet": True}
    settings = autolora.configure(tmp_path, study="quickstart", out=tmp_path / "run", values=values)
    assert settings.study is not None and settings.study.budget.n_trials == 5 and settings.quiet
    assert settings.scoring.weights == (0.8, 1.0) and settings.folder == tmp_path / "run"
    typed = ["model=paperdoll", "scoring=paperdoll", *settings.overrides[2:]]
    assert build_settings(config.compose("tune", typed, "quickstart"), "quickstart", settings.overrides) == settings
    with pytest.raises(ConfigError, match=r"train\.max_norm is called train\.scale_weight_norms now"):
        autolora.configure(tmp_path, values={"train.max_norm": 1.0})


def test_a_password_of_a_storage_is_in_no_text(tmp_path: Path) -> None:
    settings = autolora.configure(tmp_path, study="quickstart", storage="postgresql+psycopg://a:hush@b/c")
    assert settings.study is not None and settings.study.storage is not None and "hush" in settings.study.storage
    assert "hush" not in repr(settings)


def test_progress_is_called_back_and_lines_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    updates: list[ProgressUpdate] = []
    with caplog.at_level(logging.INFO, "autolora"), Bars(quiet=True, on_progress=updates.append) as bars:
        with bars.task("rendering", 4) as advance:
            advance(3)
        bars.log("half of it")
    assert updates == [ProgressUpdate("rendering", 3, 4)]
    assert caplog.messages == ["half of it"]


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="bake"):
        autolora.bake  # noqa: B018
    assert {"recipe", "train_recipe", "run_study", "score_lora", "export_best", "verify_lora"} <= set(autolora.__all__)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With smaller and fewer images than the example has."""
    configure, small = autolora.configure, {"model.resolution": 32, "model.render.search_inference_steps": 2}

    def configure_small(*study: str, values: dict[str, object]) -> object:
        return configure(*study, values={**values, **small})

    monkeypatch.setattr(autolora, "configure", configure_small)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])
    runpy.run_path(str(EXAMPLE))
    printed = capsys.readouterr().out
    assert printed.count(" images: ") == 2 and "best" in printed and "diffusers correctly" in printed
    assert list((tmp_path / "best").glob("*.safetensors"))

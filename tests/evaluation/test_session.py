"""What a process prepares before anything trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from autolora import config as cfg
from autolora.data.concepts import load_dataset
from autolora.evaluation.session import open_session
from autolora.paperdoll.world import write_dataset
from autolora.progress import Bars
from autolora.settings import build_settings
from autolora.train.loop import train_one

pytestmark = pytest.mark.slow  # trains, renders or loads many models

SMALL = (
    "model.num_class_images=6",
    "model.render.num_inference_steps=1",
    "scoring.seeds_per_class_prompt=1",
    "scoring.num_class_renders=1",
    "scoring.trigger_prompts=[smile]",
    "scoring.outfit_prompts=[hat,glasses]",
    "scoring.class_prompts=[]",
    "scoring.num_negative_renders=4",
    "scoring.second_encoder=null",
    "scoring.tagger=null",
    "train.epochs=1",
    "train.images_per_concept=24",
    "train.prior_preservation_ratio=0.5",
)


@pytest.mark.parametrize("pictures", [None, 4])
def test_nothing_is_encoded_while_something_trains(
    pictures: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding takes more memory than training a small card has left."""
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6)
    places = [f"dataset.path={tmp_path / 'doll'}", f"cache={tmp_path / 'cache'}"]
    settings = build_settings(cfg.compose("train", [*places, *SMALL]))
    run = replace(settings.run, train=replace(settings.run.train, flip_aug=True, num_class_images=pictures))
    session = open_session(settings, load_dataset(settings.dataset), [run], Bars(quiet=True))
    encoded = len(list((tmp_path / "cache" / "latents").glob("*.npy")))
    assert encoded == 2 * (6 + (pictures or 6))  # mirrored, too

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("a picture is encoded")

    monkeypatch.setattr(session.context.model, "encode_images", refuse)
    assert [checkpoint.done for checkpoint in train_one(run, session.context)] == [True]

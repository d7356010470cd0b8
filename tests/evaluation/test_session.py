"""What a process prepares before anything trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from autolora import config as cfg
from autolora.evaluation.session import open_session
from autolora.paperdoll.world import write_dataset
from autolora.progress import Bars
from autolora.train.loop import train_one

SMALL = (
    "model.class_pictures=6",
    "model.render.steps=1",
    "scoring.class_seeds=1",
    "scoring.class_alone=1",
    "scoring.contexts=[smile]",
    "scoring.overrides=[hat,glasses]",
    "scoring.class_contexts=[]",
    "scoring.contrast=4",
    "scoring.second_encoder=null",
    "scoring.tagger=null",
    "train.epochs=1",
    "train.steps_per_concept=24",
    "train.preserve_share=0.5",
)


@pytest.mark.parametrize("pictures", [None, 4])
def test_nothing_is_encoded_while_something_trains(
    pictures: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding takes more memory than training a small card has left."""
    write_dataset(tmp_path / "doll", seed=1, outfits=1, images_per_outfit=6)
    places = [f"dataset.path={tmp_path / 'doll'}", f"cache={tmp_path / 'cache'}"]
    config = cfg.compose("train", [*places, *SMALL])
    run = cfg.build_run(config)
    run = replace(run, train=replace(run.train, flip=True, class_pictures=pictures))
    work = open_session(config, [run], Bars(quiet=True))
    encoded = len(list((tmp_path / "cache" / "latents").glob("*.npy")))
    assert encoded == 2 * (6 + (pictures or 6))  # mirrored, too

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("a picture is encoded")

    monkeypatch.setattr(work.bench.model, "encode_images", refuse)
    assert [checkpoint.done for checkpoint in train_one(run, work.bench)] == [True]

"""Encoders load by name, give unit vectors, and say what is wrong with a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
from timm.models import save_for_hf

from autolora.errors import ConfigError
from autolora.models import ModelSettings, load_model
from autolora.scoring.encoders import Encoder, load_encoder, load_second_encoder

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer with random weights, saved as timm does."""
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(timm.create_model("test_vit"), str(folder))
    return folder


def check(encoder: Encoder) -> None:
    rows = encoder.images(PICTURES)
    assert rows.shape[0] == 5
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert np.allclose(encoder.images(PICTURES[2:3]), rows[2:3], atol=1e-5)


@pytest.mark.parametrize("name", ["paperdoll", "vae"])
def test_packaged_encoders(name: str) -> None:
    check(load_second_encoder(name, load_model(ModelSettings())))


def test_timm_encoders_see_but_do_not_read(timm_folder: Path) -> None:
    encoder = load_second_encoder(f"timm:local-dir:{timm_folder}", load_model(ModelSettings()))
    check(encoder)
    with pytest.raises(ConfigError, match=r"no text tower.*second_encoder"):
        encoder.texts(["1girl"])


@pytest.mark.parametrize("name", ["clip", "open_clip:", "open_clip:ViT-L-14", "vae", "timm:test_vit"])
def test_names_that_are_no_main_encoder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected `local-dir:FOLDER`"):
        load_encoder(name)


def test_a_folder_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no open_clip_config\.json"):
        load_encoder(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["timm:no_such_model", "open_clip:no-such-model/openai", "open_clip:ViT-B-32/no-tag"])
def test_models_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot load .* HF_HUB_OFFLINE=0 .*=local-dir:FOLDER"):
        load_second_encoder(name, load_model(ModelSettings()))

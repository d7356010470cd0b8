"""Encoders load by name, give unit vectors, and say what is wrong with a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from autolora.errors import ConfigError
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.scoring.encoders import Encoder, OpenClip, _detailed, concatenate, load_encoder, load_second_encoder

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer with random weights, saved as timm does."""
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(timm.create_model("test_vit"), str(folder))
    return folder


def check(encoder: Encoder) -> None:
    rows = encoder.embed_pooled(PICTURES)
    assert rows.shape[0] == 5
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert np.allclose(encoder.embed_pooled(PICTURES[2:3]), rows[2:3], atol=1e-5)
    seen = encoder.embed(PICTURES)
    assert np.allclose(seen.pooled, rows, atol=1e-5)
    assert np.linalg.norm(seen.patches, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert [len(part.patches) for part in seen.split([2, 0, 3])] == [2, 0, 3]
    assert np.array_equal(concatenate(seen.split([2, 0, 3])).patches, seen.patches)


def test_the_whole_is_what_open_clip_itself_encodes() -> None:
    """Its ResNet pools whatever block it is stopped at, so the details must not be asked for alone."""
    encoder = load_encoder("paperdoll")
    assert isinstance(encoder, OpenClip)
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255
    own = encoder.model.encode_image((pixels - encoder.mean) / encoder.std, normalize=True)
    assert np.allclose(encoder.embed_pooled(PICTURES), own.numpy(), atol=1e-5)


def test_details_tell_where_something_is(timm_folder: Path) -> None:
    """Moved to the other half, a patch changes the details of both halves."""
    model = load_model(ModelSettings())
    pictures = np.full((2, 64, 64, 3), 200, np.uint8)
    pictures[0, 8:24, 8:24] = pictures[1, 40:56, 8:24] = 0
    for encoder in (load_encoder("paperdoll"), load_second_encoder(f"timm:local-dir:{timm_folder}", model)):
        seen = encoder.embed(pictures)
        assert seen.patches.shape[1] % 4 == 0
        assert seen.patches[0] @ seen.patches[1] < 0.995


@pytest.mark.parametrize(("blocks", "detailed"), [(5, 3), (12, 8), (24, 17), (1, 0)])
def test_details_are_of_the_block_three_quarters_up(blocks: int, detailed: int) -> None:
    assert _detailed(blocks) == detailed


@pytest.mark.parametrize("name", ["paperdoll", "vae"])
def test_packaged_encoders(name: str) -> None:
    check(load_second_encoder(name, load_model(ModelSettings())))


def test_timm_encoders_see_but_do_not_read(timm_folder: Path) -> None:
    encoder = load_second_encoder(f"timm:local-dir:{timm_folder}", load_model(ModelSettings()))
    check(encoder)
    with pytest.raises(ConfigError, match=r"no text tower.*second_encoder"):
        encoder.embed_texts(["1girl"])


@pytest.mark.parametrize("name", ["clip", "open_clip:", "open_clip:ViT-L-14", "vae", "timm:test_vit"])
def test_names_that_are_no_main_encoder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected `local-dir:FOLDER`"):
        load_encoder(name)


def test_a_folder_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no open_clip_config\.json"):
        load_encoder(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["timm:no_such_model", "open_clip:no-such-model/openai", "open_clip:ViT-B-32/no-tag"])
def test_models_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot load .* HF_HUB_OFFLINE=0 .*local-dir:FOLDER"):
        load_second_encoder(name, load_model(ModelSettings()))


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("timm:vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m"),
        ("open_clip:ViT-L-14/datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    ],
)
def test_what_is_not_on_this_machine_is_named_as_it_can_be_downloaded(
    name: str, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"to have {repository} of the Hugging Face hub downloaded"):
        load_second_encoder(name, load_model(ModelSettings()))


def test_a_timm_model_that_shows_no_inner_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"timm:closed does not show its inner blocks .*no forward_intermediates and"):
        load_second_encoder("timm:closed", load_model(ModelSettings()))

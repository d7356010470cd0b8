"""Encoders are loaded by name and return unit vectors; a wrong name is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from autolora.errors import ConfigError
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.paperdoll.weights import CLIP
from autolora.scoring.embeddings import concatenate
from autolora.scoring.encoders import Encoder, OpenClip, _patch_block, load_encoder, load_second_encoder

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small vision transformer with random weights by timm."""
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(timm.create_model("test_vit"), str(folder))
    return folder


def check(encoder: Encoder) -> None:
    pooled = encoder.embed_pooled(IMAGES)
    assert pooled.shape[0] == 5
    assert np.linalg.norm(pooled, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert np.allclose(encoder.embed_pooled(IMAGES[2:3]), pooled[2:3], atol=1e-5)
    embeddings = encoder.embed(IMAGES)
    assert np.allclose(embeddings.pooled, pooled, atol=1e-5)
    assert np.linalg.norm(embeddings.patches, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert [len(part.patches) for part in embeddings.split([2, 0, 3])] == [2, 0, 3]
    assert np.array_equal(concatenate(embeddings.split([2, 0, 3])).patches, embeddings.patches)


def test_pooled_embeddings_are_open_clips_own() -> None:
    """Its ResNet pools the last block that it computes, so the last block must be computed too."""
    encoder = load_encoder("paperdoll")
    assert isinstance(encoder, OpenClip)
    pixels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255
    expected = encoder.model.encode_image((pixels - encoder.mean) / encoder.std, normalize=True)
    assert np.allclose(encoder.embed_pooled(IMAGES), expected.numpy(), atol=1e-5)


def test_patch_embeddings_depend_on_the_place(timm_folder: Path) -> None:
    """A square that moves to the other half changes the embeddings of both halves."""
    model = load_model(ModelSettings())
    images = np.full((2, 64, 64, 3), 200, np.uint8)
    images[0, 8:24, 8:24] = images[1, 40:56, 8:24] = 0
    for encoder in (load_encoder("paperdoll"), load_second_encoder(f"timm:local-dir:{timm_folder}", model)):
        embeddings = encoder.embed(images)
        assert embeddings.patches.shape[1] % 4 == 0
        assert embeddings.patches[0] @ embeddings.patches[1] < 0.995


@pytest.mark.parametrize(("blocks", "index"), [(5, 3), (12, 8), (24, 17), (1, 0)])
def test_patch_embeddings_come_from_three_quarters_of_the_depth(blocks: int, index: int) -> None:
    assert _patch_block(blocks) == index


@pytest.mark.parametrize("name", ["paperdoll", "vae"])
def test_packaged_encoders_return_unit_vectors(name: str) -> None:
    check(load_second_encoder(name, load_model(ModelSettings())))


def test_timm_encoders_embed_images_but_no_texts(timm_folder: Path) -> None:
    encoder = load_second_encoder(f"timm:local-dir:{timm_folder}", load_model(ModelSettings()))
    check(encoder)
    with pytest.raises(ConfigError, match=r"no text tower.*second_encoder"):
        encoder.embed_texts(["1girl"])


@pytest.mark.parametrize("name", ["clip", "open_clip:", "open_clip:ViT-L-14", "vae", "timm:test_vit"])
def test_names_that_cannot_be_the_first_encoder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected `local-dir:FOLDER`"):
        load_encoder(name)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no open_clip_config\.json"):
        load_encoder(f"local-dir:{tmp_path}")


def test_an_encoder_that_brings_code_of_its_own_is_refused(tmp_path: Path) -> None:
    config = json.loads((CLIP / "open_clip_config.json").read_text("utf-8"))
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config).replace("remote", "rem\\u006fte"))
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_encoder(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["timm:no_such_model", "open_clip:no-such-model/openai", "open_clip:ViT-B-32/no-tag"])
def test_models_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot load .* HF_HUB_OFFLINE=0 .*local-dir:FOLDER"):
        load_second_encoder(name, load_model(ModelSettings()))


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("timm:vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m"),
        ("open_clip:ViT-L-14/datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    ],
)
def test_a_model_that_is_not_on_this_machine_is_named_with_its_repository(
    name: str, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"to download {repository} from the Hugging Face hub"):
        load_second_encoder(name, load_model(ModelSettings()))


def test_a_timm_model_without_access_to_its_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: torch.nn.Linear(2, 2))
    message = r"timm:closed gives no access to its inner blocks .*no forward_intermediates and"
    with pytest.raises(ConfigError, match=message):
        load_second_encoder("timm:closed", load_model(ModelSettings()))

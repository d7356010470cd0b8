"""A checkpoint in one file gives the same model as its folder, without a network."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file, save_file

from autolora.adapters.kinds import LoRA
from autolora.adapters.read import read_metadata
from autolora.errors import ConfigError, ModelError
from autolora.export.metadata import ExportFacts
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.write import export_lora
from autolora.models.configs import CONFIGS
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings
from autolora.models.single_files import SingleFile, recognize_file
from autolora.models.stable_diffusion import StableDiffusion
from tests import tiny
from tests.export.world import dataset, random_state, run
from tests.original import VAE_CONFIG, Pair, save_both_forms, vae_state

pytestmark = pytest.mark.slow  # trains, renders or loads many models

PIPELINE: Any = DiffusionPipeline
VAE: Any = AutoencoderKL
PROMPTS = ["1girl, Mona", "", "mona_(é), " * 7, "a" * 100]


@pytest.fixture(scope="module")
def saved_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Return a function that writes a family's tiny model as folder and file, once."""
    return cache(lambda family: save_both_forms(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def pair(request: pytest.FixtureRequest, saved_pairs: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Return a tiny model as folder and file, which tests only read, and block the network."""
    pair = saved_pairs(request.param)
    pair.replace_configs(monkeypatch)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    return pair


def no_network(*_: object) -> None:
    raise OSError("no network in this test")


def load(source: Path, pair: Pair, **settings: Any) -> StableDiffusion:
    return tiny.load_tiny(source, pair.family, **{"prediction_type": "epsilon", **settings})


def test_file_and_folder_give_the_same_model(pair: Pair) -> None:
    folder, file = load(pair.folder, pair), load(pair.file, pair)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    noisy = torch.randn(len(PROMPTS), *folder.latent_shape, generator=generator)
    steps = torch.arange(len(PROMPTS)) * 200
    assert torch.equal(folder.encode_images(pixels), file.encode_images(pixels))
    assert torch.equal(folder.decode_latents(noisy), file.decode_latents(noisy))
    contexts = folder.encode_prompts(PROMPTS), file.encode_prompts(PROMPTS)
    assert torch.equal(contexts[0].tokens, contexts[1].tokens)
    assert (contexts[0].pooled is None) == (contexts[1].pooled is None) == (pair.family != "sdxl")
    if contexts[0].pooled is not None and contexts[1].pooled is not None:
        assert torch.equal(contexts[0].pooled, contexts[1].pooled)
    predictions = [
        model.predict(noisy, steps, context) for model, context in zip((folder, file), contexts, strict=True)
    ]
    assert torch.equal(*predictions) and float(predictions[0].std()) > 0.01
    assert torch.equal(folder.snr(steps), file.snr(steps))
    assert (file.name, folder.base_hash == file.base_hash) == ("tiny", False)


def test_a_file_is_recognized_by_its_keys(pair: Pair, tmp_path: Path) -> None:
    guessed = pair.family == "sd2"
    expected = SingleFile(pair.family, "v_prediction" if guessed else None, guessed=guessed)
    assert recognize_file(pair.file) == expected
    tensors = load_file(pair.file)
    marked = tmp_path / "marked.safetensors"
    save_file(tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, marked)
    assert recognize_file(marked) == SingleFile(pair.family, "v_prediction", True)
    model = tiny.load_tiny(marked, pair.family)
    assert model.prediction_type == "v_prediction" and float(model.snr(torch.tensor([999]))) == 0
    assert tiny.load_tiny(marked, pair.family, prediction_type="epsilon", zero_terminal_snr=False).snr(
        torch.tensor([999])
    )
    save_file(tensors, marked, {"modelspec.prediction_type": "v"})
    assert recognize_file(marked).prediction_type == "v_prediction"


@pytest.mark.parametrize("pair", ["sd2"], indirect=True)
def test_a_guessed_prediction_type_is_logged_with_the_way_to_change_it(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    assert tiny.load_tiny(pair.file, "sd2").prediction_type == "v_prediction"
    assert (
        "one.safetensors does not state its prediction type" in caplog.text
        and "model.prediction_type=epsilon" in caplog.text
    )
    caplog.clear()
    assert tiny.load_tiny(pair.file, "sd2", prediction_type="epsilon").prediction_type == "epsilon"
    assert not caplog.records


def test_a_lora_for_a_file_is_verified_by_diffusers(pair: Pair, tmp_path: Path) -> None:
    model = load(pair.file, pair)
    spec = LoRA(dim=2, alpha=1, text_encoder=True)
    state = random_state(model, spec)
    path = export_lora(state, run(spec), dataset(), model, tmp_path, "a", facts=ExportFacts("a", 1.0, "b", 4)).path
    assert model.source == pair.file
    assert DiffusersReference(path, pair.file, model).verify_deltas(state).layers
    assert read_metadata(path)["ss_clip_skip"] == "None"


@pytest.mark.parametrize("as_file", [False, True])
def test_the_vae_can_be_replaced(as_file: bool, pair: Pair, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        vae = VAE(**VAE_CONFIG).half()
    vae.save_pretrained(tmp_path / "vae")
    source = tmp_path / "vae"
    if as_file:
        source = tmp_path / "vae.safetensors"
        tensors = {key.removeprefix("first_stage_model."): t.contiguous() for key, t in vae_state(vae).items()}
        save_file(tensors, source)
    plain, model = load(pair.file, pair), load(pair.file, pair, vae=str(source))
    pixels = torch.zeros(1, 3, 32, 32)
    expected = vae.float().encode(pixels).latent_dist.mean * CONFIGS[pair.family]["vae"]["scaling_factor"]
    torch.testing.assert_close(model.encode_images(pixels), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain.encode_images(pixels), expected, atol=1e-3)
    assert model.base_hash != plain.base_hash


def test_a_source_without_a_vae_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"x")
    for source in (tmp_path / "a.ckpt", tmp_path / "missing", tmp_path):
        with pytest.raises(ModelError, match=r"model\.vae=.* is neither a diffusers VAE folder nor a \.safetensors"):
            tiny.load_tiny(tiny_model_dir, vae=str(source))
    model = tiny.load_tiny(tiny_model_dir, vae=str(tiny_model_dir))  # a full model's folder is a source too
    assert torch.equal(model.vae.encoder.conv_in.weight, tiny.load_tiny(tiny_model_dir).vae.encoder.conv_in.weight)


def test_clip_skip_selects_the_text_encoders_layer(pair: Pair) -> None:
    if pair.family != "sd1":
        plain, skipped = load(pair.folder, pair), load(pair.folder, pair, clip_skip=2)
        assert torch.equal(plain.encode_prompts(PROMPTS).tokens, skipped.encode_prompts(PROMPTS).tokens)
        with pytest.raises(ConfigError, match="always uses the layer before the last, which is clip_skip=2"):
            load(pair.folder, pair, clip_skip=1)
        return
    plain, last, skipped = (load(pair.file, pair, clip_skip=skip) for skip in (None, 1, 2))
    assert torch.equal(plain.encode_prompts(PROMPTS).tokens, last.encode_prompts(PROMPTS).tokens)
    pipeline = PIPELINE.from_pretrained(pair.folder, torch_dtype=torch.float32)
    ids = pipeline.tokenizer("1girl", padding="max_length", return_tensors="pt").input_ids
    hidden = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states
    expected = pipeline.text_encoder.final_layer_norm(hidden[-2])
    torch.testing.assert_close(skipped.encode_prompts(["1girl"]).tokens, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"clip_skip=3: this text encoder has 2 layers"):
        load(pair.file, pair, clip_skip=3)


def test_a_file_that_lacks_a_tensor_is_refused(pair: Pair, tmp_path: Path) -> None:
    for key in ("model.diffusion_model.middle_block.0.in_layers.2.weight", "first_stage_model.decoder.conv_in.bias"):
        tensors = load_file(pair.file)
        del tensors[key]
        save_file(tensors, tmp_path / "lacks.safetensors")
        with pytest.raises(ModelError, match=r"lacks 1 tensors of|cannot be loaded"):
            tiny.load_tiny(tmp_path / "lacks.safetensors", pair.family, prediction_type="epsilon")


def test_a_wrong_family_is_refused_with_the_right_one(pair: Pair) -> None:
    wrong = "sd1" if pair.family == "sdxl" else "sdxl"
    with pytest.raises(ModelError, match=rf"checkpoint: set model\.family={pair.family}; expected a"):
        load_model(ModelSettings(family=wrong, path=str(pair.file)))


def test_a_hub_id_is_found_in_the_cache(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_model_dir, cache / "snapshots" / "0123abcd")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model(ModelSettings(path="someone/tiny")).latent_shape == (4, 8, 8)
    missing = ModelSettings(family="flux", path="someone/other")
    message = r"someone/other is not a folder, not a file and not in the cache .* text_encoder_2/ \(T5-XXL\)"
    with pytest.raises(ModelError, match=message):
        load_model(missing)
    download = huggingface_hub.snapshot_download

    def unreachable(*args: Any, local_files_only: bool = False, **rest: Any) -> str:
        if not local_files_only:
            raise OSError("no route to the hub")
        return download(*args, local_files_only=True, **rest)

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert load_model(ModelSettings(path="someone/tiny")).latent_shape == (4, 8, 8)
    with pytest.raises(ModelError, match=r"no route to the hub"):
        load_model(missing)

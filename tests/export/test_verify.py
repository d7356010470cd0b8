"""An exported file, loaded by diffusers alone, changes every weight and every render as the adapter does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from autolora.adapters.adapter_set import attach
from autolora.adapters.base import State
from autolora.adapters.formats import layer_paths, to_kohya
from autolora.adapters.kinds import LoRA
from autolora.adapters.read import lora_of, read_lora
from autolora.errors import ExportError
from autolora.export.metadata import ExportFacts
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.verify import compare_renders, jitter, verify_deltas
from autolora.export.write import export_lora
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.sampling import Images, RenderRequest, render
from tests.export.diffusers_log import diffusers_warnings
from tests.export.world import dataset, random_state, run

SPEC = LoRA(dim=4, alpha=3.0, text_encoder=True)
FACTS = ExportFacts("1girl, zorak", 0.7, "a test", step=20)
SETTINGS = RenderSettings(num_inference_steps=3, guidance_scale=3.0, batch_size=4, negative_prompt="dull")
REQUESTS = [
    RenderRequest("1girl, zorak", 1, 1.0),
    RenderRequest("1girl", 2, 0.0),
    RenderRequest("1girl, zorak, fit_a", 3, 0.7),
]


@pytest.fixture(scope="module")
def state(tiny_model: StableDiffusion) -> State:
    return random_state(tiny_model, SPEC)


@pytest.fixture(scope="module")
def path(state: State, tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_lora(
        state, run(SPEC), dataset(), tiny_model, tmp_path_factory.mktemp("best"), "mona", facts=FACTS
    ).path


@pytest.fixture(scope="module")
def reference(path: Path, tiny_model_dir: Path, tiny_model: StableDiffusion) -> DiffusersReference:
    return DiffusersReference(path, tiny_model_dir, tiny_model)


def ours(model: StableDiffusion, path: Path) -> np.ndarray:
    loaded = read_lora(path, model)
    adapter = attach(model.modules, lora_of(loaded))
    try:
        adapter.load(loaded)
        return render(model, REQUESTS, SETTINGS, adapter)
    finally:
        adapter.detach()


def test_weight_changes_of_the_file_are_the_adapters(state: State, path: Path, tiny_model: StableDiffusion) -> None:
    result = verify_deltas(state, path, tiny_model)
    assert result.layers == len(layer_paths(state))
    assert (
        0 < result.delta_error < 2e-3
    )  # half precision rounds, so an error of exactly 0 would mean that nothing was compared


def test_bfloat16_is_verified_within_its_own_rounding(
    state: State, tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """It is eight times as coarse: the error is larger than float16 explains, but still only rounding."""
    path = export_lora(
        state, run(SPEC), dataset(), tiny_model, tmp_path, "coarse", facts=FACTS, dtype=torch.bfloat16
    ).path
    assert 2e-3 < verify_deltas(state, path, tiny_model).delta_error < 1e-2
    assert DiffusersReference(path, tiny_model_dir, tiny_model).verify_deltas(state).layers == len(layer_paths(state))


def test_diffusers_loads_every_key_without_a_warning(
    path: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None, torch_dtype=torch.float32)
    with diffusers_warnings(caplog) as messages:
        pipeline.load_lora_weights(path)
    assert not [message for message in messages if "lora" in message.lower() or "key" in message.lower()]
    parts = sum(
        name.endswith(("lora_A.default_0.weight", "lora_B.default_0.weight"))
        for module in (pipeline.unet, pipeline.text_encoder)
        for name, _ in module.named_parameters()
    )
    assert parts == sum("lora_" in key.split(".", 1)[1] for key in safetensors.torch.load_file(path))


def test_weight_changes_in_diffusers_are_the_files(
    state: State, path: Path, reference: DiffusersReference, tiny_model: StableDiffusion
) -> None:
    assert reference.verify_deltas(state).layers == len(layer_paths(state))
    assert reference.verify_deltas(read_lora(path, tiny_model)).delta_error < 1e-6


def test_renders_of_diffusers_are_ours(path: Path, reference: DiffusersReference, tiny_model: StableDiffusion) -> None:
    mine, theirs = ours(tiny_model, path), reference.render(REQUESTS, SETTINGS)
    assert compare_renders(mine, theirs) <= 0.1
    assert np.abs(mine.astype(int) - theirs.astype(int)).max() <= 2


def test_smaller_renders_of_diffusers_are_ours(
    path: Path, reference: DiffusersReference, tiny_model: StableDiffusion
) -> None:
    small = replace(SETTINGS, size=tiny_model.resolution // 2)
    base = render(tiny_model, [replace(request, weight=0.0) for request in REQUESTS], small)
    assert compare_renders(base, reference.render([replace(request, weight=0.0) for request in REQUESTS], small)) <= 0.1


def test_renders_of_the_base_model_are_refused(
    path: Path, reference: DiffusersReference, tiny_model: StableDiffusion
) -> None:
    base = render(tiny_model, [RenderRequest(request.prompt, request.seed, 0.0) for request in REQUESTS], SETTINGS)
    with pytest.raises(ExportError, match="differs from autolora's"):
        compare_renders(base, reference.render(REQUESTS, SETTINGS))


def test_a_difference_that_rounding_alone_causes_is_allowed() -> None:
    images = np.full((2, 8, 8, 3), 100, np.uint8)
    changed = images + np.array([0, 3], np.uint8).reshape(2, 1, 1, 1)
    assert compare_renders(images, changed, jittered=lambda: images + np.uint8(2)) == 3
    with pytest.raises(ExportError, match=r"render 1 .* differs .* 3\.0 of 255 levels .* expected at most 2\.0"):
        compare_renders(images, changed, jittered=lambda: images + np.uint8(1))

    def not_called() -> Images:
        raise AssertionError

    assert compare_renders(images, images + np.uint8(1), jittered=not_called) == 1


def test_jitter_changes_every_factor_in_the_last_digits(state: State) -> None:
    moved = jitter(state)
    assert moved.keys() == state.keys()
    for key, tensor in state.items():
        apart = (moved[key] - tensor).norm() / tensor.norm()
        assert apart == 0 if key.endswith(".alpha") else 0.3e-5 < apart < 3e-5
    assert all(torch.equal(tensor, moved[key]) for key, tensor in jitter(state).items())


def test_an_adapter_of_the_unet_alone(tiny_model: StableDiffusion, tiny_model_dir: Path, tmp_path: Path) -> None:
    spec = LoRA(dim=2, alpha=2.0, targets=("attention",))
    state = random_state(tiny_model, spec)
    path = export_lora(state, run(spec), dataset(), tiny_model, tmp_path, "unet", facts=FACTS).path
    assert DiffusersReference(path, tiny_model_dir, tiny_model).verify_deltas(state).layers == len(layer_paths(state))
    assert lora_of(read_lora(path, tiny_model)) == spec


@pytest.mark.parametrize("change", ["alpha", "value", "layer", "added"])
def test_wrong_files_are_refused(change: str, state: State, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    tensors = to_kohya(state, "sd1")
    first = next(iter(tensors)).partition(".")[0]
    expected = dict(state)
    if change == "alpha":
        tensors[f"{first}.alpha"] = torch.tensor(4.0)
    elif change == "value":
        tensors[f"{first}.lora_up.weight"] = tensors[f"{first}.lora_up.weight"].roll(1, 0)
    elif change == "layer":
        tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{first}.")}
    else:
        gone = layer_paths(state)[0]
        expected = {key: value for key, value in state.items() if not key.startswith(f"{gone}.")}
    path = tmp_path / "wrong.safetensors"
    safetensors.torch.save_file(tensors, path)
    message = {"alpha": "differs", "value": "differs", "layer": "1 layers missing", "added": "1 layers added"}
    with pytest.raises(ExportError, match=message[change]):
        verify_deltas(expected, path, tiny_model)


def test_small_values_are_verified_within_half_precision(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """After a few steps an adapter has subnormal factors, whose relative error is large and harmless."""
    state = random_state(tiny_model, SPEC)
    state |= {key: value * 1e-6 for key, value in state.items() if "lora_up" in key}
    path = export_lora(state, run(SPEC), dataset(), tiny_model, tmp_path, "young", facts=FACTS).path
    assert verify_deltas(state, path, tiny_model).delta_error > 1e-2
